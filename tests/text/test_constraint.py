"""A grammar's place in an answer: masks, drafts, ends, faults."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byte_tokenizer import END_OF_TEXT, IM_END, MERGES, byte_fallback, byte_level, write_json, write_tokenizer
from grammar_walk import MODEL_VOCAB_SIZE, chat_tokenizer, new_masks, tokens_in, walk
from penstock.base.errors import EngineError
from penstock.protocol.response_format import GrammarSpec, Kind
from penstock.text.constraint import MAX_REASON_LENGTH, Grammar, Vocabulary, is_allowed, reason
from penstock.text.grammar import build_grammar
from penstock.text.grammar_source import translate
from penstock.text.tokenizer import Tokenizer

SPECIALS = {
    text: 256 + len(MERGES) + index for index, text in enumerate((END_OF_TEXT, "<|im_start|>", IM_END))
}
ENDS = [SPECIALS[END_OF_TEXT], SPECIALS[IM_END]]
SUM = 'start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]+/\n'
TREE = {
    "type": "object",
    "properties": {"é": {"type": "string"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["é", "next"],
    "additionalProperties": False,
}
SPECS: list[tuple[Kind, str]] = [
    ("json_object", ""),
    ("json_schema", json.dumps(TREE)),
    ("regex", r"(hello|he) world(, \w+){1,3}"),
    ("choice", json.dumps(["hello", "hell", "你好", "😀😀"])),
    ("lark", SUM),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level, with two end tokens."""
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Of a model with more tokens than the tokenizer has."""
    return Vocabulary.of(tokenizer, MODEL_VOCAB_SIZE)


def compiled(kind: Kind, source: str, vocabulary: Vocabulary) -> Grammar:
    """A grammar."""
    spec = GrammarSpec(kind, source, "field")
    return build_grammar(spec, translate(spec), vocabulary)


def allowed_after(grammar: Grammar, answer: list[int]) -> list[int]:
    """The tokens that may follow."""
    masks = new_masks()
    grammar.new_constraint().fill(masks, answer, ())
    return tokens_in(masks[0])


def test_the_vocabulary_knows_every_end_token(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """The tokenizer's own, and the config's."""
    assert vocabulary.end_tokens == tuple(ENDS)
    assert tokenizer.vocab_size == 268
    assert (vocabulary.num_words, vocabulary.num_mask_words) == (9, 10)
    assert tokens_in(vocabulary.end_row()) == ENDS


@pytest.mark.parametrize(("kind", "source"), SPECS)
def test_masks_hold_the_tokenizers_tokens_alone(kind: Kind, source: str, vocabulary: Vocabulary) -> None:
    """Ids that only the model has are never allowed, whatever was in the mask before."""
    grammar = compiled(kind, source, vocabulary)
    for seed in range(5):
        answer, _ = walk(grammar, seed)
        constraint = grammar.new_constraint()
        for length in range(len(answer) + 1):
            masks = np.full_like(new_masks(), -1)
            constraint.fill(masks, answer[:length], ())
            allowed = tokens_in(masks[0])
            assert allowed
            assert max(allowed) < 268
            assert SPECIALS["<|im_start|>"] not in allowed


def test_ends_are_allowed_together_where_the_answer_is_complete(vocabulary: Vocabulary) -> None:
    """And nothing else where nothing can follow."""
    grammar = compiled("regex", "ab?", vocabulary)
    assert allowed_after(grammar, []) == [ord("a")]
    assert allowed_after(grammar, [ord("a")]) == [ord("b"), *ENDS]
    assert allowed_after(grammar, [*b"ab"]) == ENDS


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("text", [b"a", b"ab"])
def test_after_an_end_token_only_an_end_token_follows(end: int, text: bytes, vocabulary: Vocabulary) -> None:
    """An engine that is asked to ignore the end goes on; no call raises."""
    constraint = compiled("regex", "ab?", vocabulary).new_constraint()
    for tail in ([end], [end, ENDS[1]], [end, ENDS[1], ord("x")], [end, ENDS[1], ord("x"), 319]):
        masks = new_masks(3)
        constraint.fill(masks, [*text, *tail], [ENDS[0], ENDS[0]])
        assert [tokens_in(row) for row in masks] == [ENDS] * 3


@pytest.mark.parametrize(("kind", "source"), SPECS)
@given(st.integers(0, 1 << 30), st.lists(st.integers(0, 6), min_size=1, max_size=40), st.data())
def test_drafts_change_nothing(
    kind: Kind, source: str, vocabulary: Vocabulary, seed: int, lengths: list[int], data: st.DataObject
) -> None:
    """The masks behind a draft are those of an answer that has it as text; what follows is as if none was."""
    grammar = compiled(kind, source, vocabulary)
    answer, is_finished = walk(grammar, seed)
    answer += [ENDS[0]] if is_finished else []
    drafted = grammar.new_constraint()
    length = 0
    for size in lengths:
        draft = answer[length : length + size]
        wrong = data.draw(st.integers(0, 3 * size))
        if wrong < len(draft):
            draft[wrong] = SPECIALS["<|im_start|>"]
        masks = new_masks(1 + len(draft))
        drafted.fill(masks, answer[:length], draft)
        for i in range(1 + len(draft)):
            if i <= wrong:
                assert tokens_in(masks[i]) == allowed_after(grammar, answer[: length + i])
            else:
                assert not masks[i].any()
        length = min(length + 1 + size // 2, len(answer))


@pytest.mark.parametrize("draft", [[-1], [1 << 20], [319], [ord("b")], [ENDS[0]]])
def test_a_draft_that_is_not_allowed_ends_the_filling(draft: list[int], vocabulary: Vocabulary) -> None:
    """Also one whose id is not in the mask at all."""
    constraint = compiled("regex", "ac", vocabulary).new_constraint()
    masks = new_masks(3)
    constraint.fill(masks, [], [*draft, ord("c")])
    assert tokens_in(masks[0]) == [ord("a")]
    assert not masks[1:].any()


def test_an_answer_that_is_not_a_continuation_is_read_anew(vocabulary: Vocabulary) -> None:
    """Shorter, different, and back again."""
    grammar = compiled("regex", "a[bc]d*", vocabulary)
    constraint = grammar.new_constraint()
    for answer in (b"abd", b"a", b"acd", b"", b"acddd"):
        masks = new_masks()
        constraint.fill(masks, [*answer], ())
        assert tokens_in(masks[0]) == allowed_after(grammar, [*answer])


def test_an_answer_that_is_not_of_the_grammar_is_an_engine_error(vocabulary: Vocabulary) -> None:
    """Each time it is asked for; others go on."""
    grammar = compiled("regex", "ab", vocabulary)
    constraint, other = grammar.new_constraint(), grammar.new_constraint()
    for message in ("token 120 is not admitted by the grammar", "cannot be followed any further"):
        with pytest.raises(EngineError, match=message):
            constraint.fill(new_masks(), [*b"ax"], ())
    masks = new_masks()
    other.fill(masks, [*b"a"], ())
    assert tokens_in(masks[0]) == [ord("b")]
    constraint.fill(masks, [*b"a"], ())
    assert tokens_in(masks[0]) == [ord("b")]


@pytest.mark.parametrize(
    "masks",
    [
        np.zeros((2, 10), dtype=np.int32),
        np.zeros((1, 9), dtype=np.int32),
        np.zeros((1, 10), dtype=np.int64),
        np.zeros((1, 20), dtype=np.int32)[:, ::2],
        np.zeros(10, dtype=np.int32),
    ],
)
def test_masks_of_another_shape_are_refused(masks: np.ndarray, vocabulary: Vocabulary) -> None:
    """They would be written past their end."""
    with pytest.raises(EngineError, match="masks are"):
        compiled("regex", "a", vocabulary).new_constraint().fill(masks, [], ())


@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[a-f]*", r"(?i:yes|no)", "é+|你", r"[^a]{4}", "(hello )+", r"\x00\n"]
)
def test_a_regular_expression_matches_all_of_the_answer(
    pattern: str, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    """Says Python's own."""
    grammar = compiled("regex", pattern, vocabulary)
    for seed in range(20):
        answer, is_finished = walk(grammar, seed, patience=10)
        assert is_finished
        assert re.fullmatch(pattern, tokenizer.decode(answer))


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=8
    )
)
def test_an_answer_is_one_of_the_choices(
    tokenizer: Tokenizer, vocabulary: Vocabulary, choices: list[str]
) -> None:
    """Whatever characters they have, and if one begins another; each of them can be the answer."""
    grammar = compiled("choice", json.dumps(choices), vocabulary)
    for seed in range(3):
        answer, is_finished = walk(grammar, seed, patience=100)
        assert is_finished
        assert tokenizer.decode(answer) in choices
    for choice in choices:
        assert ENDS[0] in allowed_after(grammar, [*choice.encode()])


def test_a_context_free_grammar_is_followed(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Brackets match, which no regular expression can say."""
    grammar = compiled("lark", SUM, vocabulary)
    for seed in range(30):
        answer, is_finished = walk(grammar, seed)
        text = tokenizer.decode(answer)
        if is_finished:
            assert re.fullmatch(r"[0-9+()]+", text)
            assert isinstance(eval(re.sub(r"\b0+(?=[0-9])", "", text)), int)
    assert allowed_after(grammar, [*b"((1)"]) == sorted([*b"+)"])


def test_the_grammars_own_end_tokens_do_not_cut_it_short(vocabulary: Vocabulary) -> None:
    """One may stand where the grammar is complete behind it, as grammars for other servers have it."""
    after_a = allowed_after(compiled("lark", f'start: "a" {IM_END}', vocabulary), [ord("a")])
    assert after_a == [SPECIALS[IM_END]]
    between = compiled("lark", f'start: "a" ({IM_END} "b" | "c")', vocabulary)
    assert allowed_after(between, [ord("a")]) == [ord("c")]
    with pytest.raises(ValueError, match="goes on after an end token"):
        compiled("lark", f'start: "a" {IM_END} "b"', vocabulary)


def test_an_end_token_that_is_text_ends_only_what_is_complete(tmp_path: Path) -> None:
    """Some small models end at a new line."""
    write_tokenizer(byte_level(MERGES), tmp_path)
    write_json(tmp_path / "config.json", {"eos_token_id": [10, 400]})
    vocabulary = Vocabulary.of(Tokenizer(tmp_path), MODEL_VOCAB_SIZE)
    assert vocabulary.end_tokens == (10,)
    grammar = compiled("regex", "a[\nb]c\n?", vocabulary)
    assert allowed_after(grammar, [*b"a"]) == [ord("b")]
    assert allowed_after(grammar, [*b"abc"]) == [10]
    assert allowed_after(grammar, [*b"abc\n"]) == [10]


def test_lark_cannot_name_ids_that_only_the_model_has(vocabulary: Vocabulary) -> None:
    """They have no text and may have no meaning."""
    with pytest.raises(ValueError, match="too large"):
        compiled("lark", "start: <[300]>", vocabulary)
    assert max(allowed_after(compiled("lark", 'start: "a" | <[^1]>', vocabulary), [])) < 268


def test_rules_with_limits_of_their_own_take_drafts_too(vocabulary: Vocabulary) -> None:
    """llguidance cannot take back tokens of such a rule."""
    constraint = compiled("lark", 'start: x "b"\nx[max_tokens=2]: /a*/\n', vocabulary).new_constraint()
    masks = new_masks(3)
    constraint.fill(masks, [ord("a")], [ord("a"), ord("b")])
    assert tokens_in(masks[0]) == [*b"ab"]
    assert tokens_in(masks[1]) == [ord("b")]
    assert tokens_in(masks[2]) == ENDS


def test_a_limit_that_is_reached_ends_the_answer_and_not_its_form(vocabulary: Vocabulary) -> None:
    """llguidance then gives the mask of the end tokens: an answer would end in its middle, and seem whole."""
    prefix = "a long way from the beginning "
    source = f'start: "{prefix}" ' + "A? " * 1000 + '"c"\nA: "b"\n'
    grammar = compiled("lark", source, vocabulary)
    constraint, masks = grammar.new_constraint(), new_masks()
    constraint.fill(masks, [*prefix[:-1].encode()], ())
    assert not grammar.is_broken
    for _ in range(2):
        with pytest.raises(EngineError, match=r"cannot be followed any further|is not admitted"):
            constraint.fill(masks, [*prefix.encode()], ())
    assert grammar.is_broken


def test_a_model_without_an_end_token_cannot_be_constrained(tmp_path: Path) -> None:
    """No answer could end where it is complete."""
    tokenizer = Tokenizer(write_tokenizer(byte_level(), tmp_path))
    with pytest.raises(ValueError, match="no end token"):
        Vocabulary.of(tokenizer, 300)


def test_sentencepiece_tokenizers_are_understood(tmp_path: Path) -> None:
    """Spaces are written another way there, and unknown characters byte by byte."""
    tokenizer = Tokenizer(write_tokenizer(byte_fallback(), tmp_path, eos_token="</s>"))
    grammar = compiled("choice", json.dumps(["hello hello", "你 world"]), Vocabulary.of(tokenizer, 300))
    texts = {tokenizer.decode(walk(grammar, seed, patience=100)[0]) for seed in range(40)}
    assert texts == {"hello hello", "你 world"}


def test_a_bit_is_a_token() -> None:
    """The sign bit too; ids outside are not allowed."""
    row = np.array([1, -(1 << 31)], dtype=np.int32)
    assert [token for token in range(-40, 100) if is_allowed(row, token)] == [0, 63]


def test_a_reason_is_one_short_line() -> None:
    """llguidance writes several, with the grammar."""
    assert reason("a\n  b\n<non-verbose/>") == "a b"
    assert reason("at 1(8): a\n  ^\n   1 | start: b\n   2 | c") == "at 1(8): a ^"
    assert reason("at 1(8): failed to compile JSON schema: a\n   1 | start: b") == "a"
    assert len(reason("x" * 10_000)) == MAX_REASON_LENGTH + 1
