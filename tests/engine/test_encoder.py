"""The encoder beside transformers': same states, same scores, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertModel

from penstock.engine.encoder import EncoderInput
from penstock.engine.pooling import Pooling, pool
from penstock.text.tokenizer import Tokenizer
from tiny_encoders import ENCODERS, REAL, SCORERS, EncoderCase, read_encoder, states_of, texts, write_encoder

TOLERANCE = 1e-5


@torch.inference_mode()
def oracle_states(oracle: Any, tokens: Sequence[int], types: Sequence[int] | None = None) -> Tensor:
    """transformers' last hidden states of one text, computed alone and without padding."""
    body = getattr(oracle, oracle.base_model_prefix, oracle)
    kinds = {} if types is None else {"token_type_ids": torch.tensor([types])}
    return body(torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens)), **kinds).last_hidden_state[
        0
    ]


@pytest.mark.parametrize("case", [*ENCODERS, *SCORERS], ids=str)
def test_states_are_transformers(case: EncoderCase, tmp_path: Path) -> None:
    """Of texts of one token to the longest, in one batch, all poolings."""
    oracle = write_encoder(case, tmp_path)
    encoder = read_encoder(tmp_path)
    given = [*texts(12, 30), [5], [7] * encoder.spec.max_positions]
    for tokens, states in zip(given, states_of(encoder, list(map(EncoderInput, given))), strict=True):
        expected = oracle_states(oracle, tokens)
        torch.testing.assert_close(states, expected, atol=TOLERANCE, rtol=0)
        for pooling, vector in (
            (Pooling.MEAN, expected.mean(0)),
            (Pooling.LAST, expected[-1]),
            (Pooling.CLS, expected[0]),
        ):
            torch.testing.assert_close(pool(states, pooling), vector, atol=TOLERANCE, rtol=0)


def test_segments_are_told_apart_where_the_model_knows_them(tmp_path: Path) -> None:
    """BERT has two; RoBERTa has one, whatever its tokenizer says."""
    tokens, types = [2, 5, 6, 3, 7, 8, 3], [0, 0, 0, 0, 1, 1, 1]
    oracle = write_encoder(ENCODERS[0], tmp_path / "bert")
    encoder = read_encoder(tmp_path / "bert")
    plain, typed = states_of(encoder, [EncoderInput(tokens), EncoderInput(tokens, types)])
    torch.testing.assert_close(typed, oracle_states(oracle, tokens, types), atol=TOLERANCE, rtol=0)
    assert (plain - typed).abs().max() > 0.01
    write_encoder(ENCODERS[4], tmp_path / "roberta")
    roberta = read_encoder(tmp_path / "roberta")
    plain, typed = states_of(roberta, [EncoderInput(tokens), EncoderInput(tokens, types)])
    torch.testing.assert_close(typed, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", SCORERS, ids=str)
def test_scores_are_transformers(case: EncoderCase, tmp_path: Path) -> None:
    """Before the sigmoid."""
    oracle = write_encoder(case, tmp_path)
    encoder = read_encoder(tmp_path)
    given = texts(9, 40, seed=3)
    for tokens, states in zip(given, states_of(encoder, list(map(EncoderInput, given))), strict=True):
        with torch.inference_mode():
            expected = oracle(torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens))).logits[0]
            torch.testing.assert_close(encoder.score(states[:1]), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("company", [1, 7, 60])
def test_a_text_does_not_depend_on_its_company(company: int, tmp_path: Path) -> None:
    """Nor on its place in the batch."""
    write_encoder(ENCODERS[0], tmp_path)
    encoder = read_encoder(tmp_path)
    own = EncoderInput(texts(1, 30, seed=8)[0])
    (alone,) = states_of(encoder, [own])
    others = list(map(EncoderInput, texts(company, 60, seed=company)))
    for place in (0, company // 2, company):
        among = states_of(encoder, [*others[:place], own, *others[place:]])[place]
        torch.testing.assert_close(among, alone, atol=1e-6, rtol=0)


SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone performs music outdoors with a string instrument.",
    "The central bank raised interest rates again.",
    "Interest rates went up once more.",
    "word " * 200,
    "x" * 300,
    "Grüße, 世界! naïve café",
)


def test_the_real_encoder_is_transformers() -> None:
    """On sentences, long and strange texts too, through its own tokenizer."""
    encoder, tokenizer = read_encoder(REAL), Tokenizer(REAL)
    oracle = BertModel.from_pretrained(REAL, attn_implementation="eager").eval()
    ids = [tokenizer.encode(text, add_special_tokens=True) for text in SENTENCES]
    for tokens, states in zip(ids, states_of(encoder, list(map(EncoderInput, ids))), strict=True):
        expected = oracle_states(oracle, tokens)
        torch.testing.assert_close(states, expected, atol=TOLERANCE, rtol=0)


def test_the_real_encoder_knows_what_sentences_mean() -> None:
    """Those that say the same are closer than those that do not, by far."""
    encoder, tokenizer = read_encoder(REAL), Tokenizer(REAL)
    ids = [EncoderInput(tokenizer.encode(text, add_special_tokens=True)) for text in SENTENCES[:4]]
    guitar, music, bank, rates = (
        torch.nn.functional.normalize(pool(states, Pooling.MEAN), dim=0) for states in states_of(encoder, ids)
    )
    same = [float(guitar @ music), float(bank @ rates)]
    different = [float(one @ other) for one in (guitar, music) for other in (bank, rates)]
    assert min(same) > 0.4
    assert max(different) < 0.15


def test_bfloat16_is_near(tmp_path: Path) -> None:
    """Large encoders run in it on a CPU."""
    write_encoder(ENCODERS[0], tmp_path)
    exact = read_encoder(tmp_path)
    given = list(map(EncoderInput, texts(5, 30)))
    expected = states_of(exact, given)
    for rough, fine in zip(states_of(exact.to(torch.bfloat16), given), expected, strict=True):
        assert rough.dtype == torch.bfloat16
        similarity = torch.nn.functional.cosine_similarity(rough.float().mean(0), fine.mean(0), dim=0)
        assert similarity > 0.999
