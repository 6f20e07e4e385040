"""Incremental text equals whole text, for any tokens; stop strings are found whatever the pieces."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from byte_tokenizer import MERGES, SPECIAL_TOKENS, byte_fallback, byte_level, metaspace, write_tokenizer
from penstock.text.detokenizer import MAX_HELD_TOKENS, REPLACEMENT, Decodes, Detokenizer, StopMatcher
from penstock.text.tokenizer import Tokenizer

KINDS = {"byte_level": byte_level(MERGES), "byte_fallback": byte_fallback(), "metaspace": metaspace()}
TEXTS = [
    "hello world",
    " hello  hello",
    "  ",
    "你好，世界",
    "😀😀 hé",
    "a\n\tb",
    "e\u0301",
    "hello " * 20,
    "\u200d👩\u200d🚀",
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Each kind of tokenizer in turn."""
    return load(KINDS[request.param], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The byte-level tokenizer."""
    return load(KINDS["byte_level"], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def with_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer with byte fallback."""
    return load(KINDS["byte_fallback"], tmp_path_factory.mktemp("tokenizer"))


def load(tokenizer: RustTokenizer, directory: Path) -> Tokenizer:
    """Ours over a checkpoint folder."""
    return Tokenizer(write_tokenizer(tokenizer, directory))


def pieces(tokenizer: Decodes, ids: list[int]) -> list[str]:
    """What comes out token by token, and at the end."""
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_out_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    """Every piece is a part of the text; no U+FFFD stands for a character that is under way."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    out = pieces(tokenizer, ids)
    assert "".join(out) == tokenizer.decode(ids)
    assert not any(REPLACEMENT in piece for piece in out)


@pytest.mark.parametrize("text", TEXTS)
def test_single_bytes_come_out_in_whole_characters(by_bytes: Tokenizer, text: str) -> None:
    """One token per byte: each character appears with its last byte, none is held longer."""
    seen = ""
    detokenizer = Detokenizer(by_bytes)
    raw = text.encode()
    for index, byte in enumerate(raw):
        seen += detokenizer.push(byte)
        assert seen == raw[: index + 1].decode(errors="ignore")


@given(st.data())
def test_any_tokens_give_the_whole_text(by_bytes: Tokenizer, data: st.DataObject) -> None:
    """Broken UTF-8, special tokens and ids that the tokenizer does not have, in any order."""
    ids = data.draw(st.lists(st.integers(0, by_bytes.vocab_size + 3), max_size=60))
    assert "".join(pieces(by_bytes, ids)) == by_bytes.decode(ids)


@given(
    st.lists(
        st.sampled_from(
            [*"é你😀\u0301".encode(), 0x80, 0xC3, 0xE4, 0xF0, 0xFF, 0x41, 260, 261, 262, 263, 264, 265]
        )
    )
)
def test_any_halves_of_characters_give_the_whole_text(by_bytes: Tokenizer, ids: list[int]) -> None:
    """Chosen so that characters begin, break off, and begin again."""
    assert "".join(pieces(by_bytes, ids)) == by_bytes.decode(ids)


@given(st.lists(st.integers(0x80, 0xBF), min_size=40, max_size=60))
def test_broken_text_is_not_held_for_ever(by_bytes: Tokenizer, ids: list[int]) -> None:
    """A model that writes nonsense still streams, in bounded memory."""
    out = pieces(by_bytes, ids)
    assert "".join(out) == REPLACEMENT * len(ids)
    for start in range(0, len(ids) - MAX_HELD_TOKENS, MAX_HELD_TOKENS):
        assert "".join(out[start : start + MAX_HELD_TOKENS + 1])


@given(st.lists(st.sampled_from(["hello", " ", "  ", "é", "你", "😀", "wor", "ld", ".", "\n", "ß"])))
def test_any_text_survives_every_tokenizer(tokenizer: Tokenizer, words: list[str]) -> None:
    """Leading spaces too, which sentencepiece's decoders treat specially."""
    ids = tokenizer.encode("".join(words), add_special_tokens=False)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.data())
def test_any_whole_pieces_give_the_whole_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Tokens in an order that no encoder gives, spaces first, special tokens between."""
    usable = [token for token in range(tokenizer.vocab_size) if REPLACEMENT not in tokenizer.decode([token])]
    ids = data.draw(st.lists(st.sampled_from(usable), max_size=40))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("count", [1, 5, 50])
def test_special_tokens_show_nothing_and_change_nothing(by_bytes: Tokenizer, count: int) -> None:
    """Not even many of them within a character."""
    special = by_bytes.special_tokens[SPECIAL_TOKENS[0]]
    first, *rest = "😀".encode()
    out = pieces(by_bytes, [special, first, *[special] * count, *rest, special])
    assert "".join(out) == "😀"


@given(st.data())
def test_shown_special_tokens_come_out_with_the_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Each kind of tokenizer, special tokens anywhere, some shown and some not: the whole text, in order."""
    shown, hidden = sorted(tokenizer.special_tokens)[:2]
    decoding = tokenizer.showing({shown})
    usable = [token for token in range(tokenizer.vocab_size) if REPLACEMENT not in tokenizer.decode([token])]
    special = [tokenizer.special_tokens[name] for name in (shown, hidden)]
    ids = data.draw(st.lists(st.sampled_from(special) | st.sampled_from(usable), max_size=40))
    whole = decoding.decode(ids)
    assert "".join(pieces(decoding, ids)) == whole
    assert whole.count(shown) == ids.count(special[0])
    assert hidden not in whole


def test_a_shown_special_token_ends_a_broken_character(by_bytes: Tokenizer) -> None:
    """It comes at once, behind the U+FFFD that it makes of what was held."""
    token = by_bytes.special_tokens[SPECIAL_TOKENS[1]]
    detokenizer = Detokenizer(by_bytes.showing(SPECIAL_TOKENS))
    assert detokenizer.push(0xE4) == ""
    assert detokenizer.push(token) == REPLACEMENT + SPECIAL_TOKENS[1]
    assert detokenizer.push(ord("a")) == "a"


def test_a_space_before_the_first_word_is_the_decoders_business(with_fallback: Tokenizer) -> None:
    """One leading space is stripped, as in the whole text; a second one shows."""
    space, word = (with_fallback.encode(text, add_special_tokens=False)[-1] for text in ("a ", "hello"))
    for ids in ([space, word], [space, space, word], [word, space, word]):
        assert "".join(pieces(with_fallback, ids)) == with_fallback.decode(ids)


def test_broken_bytes_do_not_spoil_what_was_released(with_fallback: Tokenizer) -> None:
    """Byte fallback decodes a run of bytes that is broken anywhere to nothing but U+FFFD."""
    you, letter = (
        [3 + byte for byte in "你".encode()],
        with_fallback.encode("e", add_special_tokens=False)[-1],
    )
    assert with_fallback.decode([*you, 3 + 0x80]) == REPLACEMENT * 4
    assert "".join(pieces(with_fallback, [*you, 3 + 0x80, letter])) == f"你{REPLACEMENT}e"


def test_flushing_shows_what_was_broken_off(by_bytes: Tokenizer) -> None:
    """A length limit in the middle of a character; flushing once more gives nothing."""
    detokenizer = Detokenizer(by_bytes)
    assert detokenizer.push(0x41) == "A"
    assert detokenizer.push(0xE4) == ""
    assert detokenizer.flush() == REPLACEMENT
    assert detokenizer.flush() == ""


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first; of two complete at once, the longer."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def match(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    """What a matcher releases of a text in parts."""
    matcher = StopMatcher(stops)
    released = "".join(matcher.push(part) for part in parts)
    return released + matcher.flush(), matcher.is_stopped


def cuts(text: str) -> list[list[str]]:
    """Every way to cut a short text in parts."""
    ways = []
    for mask in range(1 << max(len(text) - 1, 0)):
        places = [0, *(i + 1 for i in range(len(text) - 1) if mask >> i & 1), len(text)]
        ways.append([text[start:end] for start, end in itertools.pairwise(places)])
    return ways


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abcdef", ["cd"], ("ab", True)),
        ("abcdef", ["xy"], ("abcdef", False)),
        ("abcdef", [], ("abcdef", False)),
        ("abcdef", ["abcdef"], ("", True)),
        ("abcdef", ["ef", "abcdefg"], ("abcd", True)),
        ("aab", ["ab"], ("a", True)),
        ("ababac", ["abac"], ("ab", True)),
        ("abcd", ["abcd", "bc"], ("a", True)),
        ("abcd", ["ab", "abcd"], ("", True)),
        ("xabc", ["abc", "c", "bc"], ("x", True)),
        ("xab", ["abc", "abd"], ("xab", False)),
        ("a你好b", ["你好"], ("a", True)),
        ("aaaa", ["aaa"], ("", True)),
    ],
)
def test_the_cut_does_not_depend_on_the_parts(
    text: str, stops: list[str], expected: tuple[str, bool]
) -> None:
    """Every way to cut the text; overlapping stops, one inside another, one the beginning of another."""
    assert reference(text, stops) == expected
    assert {match(stops, parts) for parts in cuts(text)} == {expected}


@given(
    st.text("ab", max_size=14),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 14), max_size=6),
)
def test_any_text_in_any_parts_is_cut_like_the_whole(text: str, stops: list[str], places: list[int]) -> None:
    """Against the plain definition."""
    bounds = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(bounds)]
    assert match(stops, parts) == match(stops, list(text)) == reference(text, stops)


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stops: list[str]) -> None:
    """The longest end of the text that begins a stop string, and nothing else: streams stay prompt."""
    matcher = StopMatcher(stops)
    released = ""
    for index, letter in enumerate(text):
        released += matcher.push(letter)
        if matcher.is_stopped:
            break
        seen = text[: index + 1]
        held = max(
            (size for stop in stops for size in range(len(stop)) if seen.endswith(stop[:size])), default=0
        )
        assert len(released) == len(seen) - held


def test_after_a_stop_nothing_is_released() -> None:
    """Whatever else arrives, also the flush."""
    matcher = StopMatcher(["b"])
    assert matcher.push("abc") == "a"
    assert matcher.push("d") == matcher.flush() == matcher.push("b") == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    """The longest stop string less its last letter."""
    stop = "x" * 1023 + "y"
    matcher = StopMatcher([stop])
    assert "".join(matcher.push("x") for _ in range(1023)) == ""
    assert matcher.flush() == "x" * 1023
    assert matcher.flush() == ""
    assert not matcher.is_stopped
