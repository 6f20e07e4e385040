"""The tokenizer: lossless, with fixed ids, and the shipped one is what the seed gives."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import penstock
from penstock.lab.vocabulary import (
    SPECIAL_TOKENS,
    VOCABULARY_SIZE,
    render,
    save_tokenizer,
    train_tokenizer,
)

SHIPPED = Path(penstock.__file__).parent / "builtin" / "tiny"


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(seed=0)


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


def test_the_shipped_tokenizer_is_the_one_that_the_seed_gives(trained: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(trained, tmp_path, max_positions=2048)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text("utf-8")) == json.loads(
            (SHIPPED / name).read_text("utf-8")
        )


def test_size_and_special_ids(shipped: Tokenizer) -> None:
    assert shipped.get_vocab_size() == VOCABULARY_SIZE == 4096
    assert [shipped.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    for role in ("system", "user", "assistant"):
        assert len(shipped.encode(role).ids) == 1


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=80))
def test_any_text_survives_a_round_trip(text: str) -> None:
    # Special tokens typed by a user would be read as such; the property is about all other text.
    if any(token in text for token in SPECIAL_TOKENS):
        return
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json")) if not _CACHE else _CACHE[0]
    if not _CACHE:
        _CACHE.append(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


_CACHE: list[Tokenizer] = []


@pytest.mark.parametrize("text", ["4096", "a1b2", "三百四十二", "23+45"])
def test_digits_and_chinese_characters_stand_alone(shipped: Tokenizer, text: str) -> None:
    for token in shipped.encode(text).ids:
        piece = shipped.decode([token])
        if any(character.isdigit() or "一" <= character <= "龥" for character in piece):
            assert len(piece) == 1


def test_a_word_is_the_same_tokens_wherever_it_stands(shipped: Tokenizer) -> None:
    alone = shipped.encode("brimdoko").ids
    inside = shipped.encode('a brimdoko, "brimdoko"').ids
    positions = [i for i in range(len(inside)) if inside[i : i + len(alone)] == alone]
    assert len(positions) == 2


def test_rendering_is_chatml_and_invents_nothing() -> None:
    chat = ({"role": "user", "content": "hi"},)
    assert render(chat, generate=True) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
