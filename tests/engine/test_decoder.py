"""The decoder's parts, apart from any cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dense_attention import DenseAttention
from penstock.engine.decoder import Decoder, RMSNorm
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import load_checkpoint, part_table, read_config
from tiny_checkpoints import CASES, Case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_equals_transformers_bit_by_bit(dtype: torch.dtype) -> None:
    """In bfloat16 too, where the order of rounding shows; small states let eps count."""
    states = torch.randn(50, 64, generator=torch.Generator().manual_seed(1)).to(dtype) * 0.01
    ours, theirs = RMSNorm(64, 1e-5).to(dtype), LlamaRMSNorm(64, 1e-5).to(dtype)
    assert torch.equal(ours(states), theirs(states))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_parameter_is_covered_exactly_once_by_checkpoint_tensors(
    case: Case, written: Callable[[str], Any]
) -> None:
    """No row of a fused parameter stays unread, none is written twice."""
    decoder = Decoder(DecoderSpec.from_config(read_config(written(case.name).directory)))
    parameters = dict(decoder.named_parameters())
    covered = {name: torch.zeros(len(parameter), dtype=torch.int64) for name, parameter in parameters.items()}
    for part in part_table(decoder.spec).values():
        rows = len(covered[part.name]) if part.rows is None else part.rows
        covered[part.name][part.start : part.start + rows] += 1
    assert all((rows == 1).all() for rows in covered.values())


def test_a_tied_head_is_the_embedding(written: Callable[[str], Any]) -> None:
    """One tensor in memory, also after loading."""
    decoder = load_checkpoint(written("qwen2-tied").directory)
    assert decoder.head.weight is decoder.embedding.weight
    untied = load_checkpoint(written("qwen2").directory)
    assert untied.head.weight is not untied.embedding.weight


def test_logits_are_float32_whatever_the_weights_are(written: Callable[[str], Any]) -> None:
    """The sampler's distribution must not be rounded twice."""
    decoder = load_checkpoint(written("llama").directory, torch.bfloat16)
    with torch.no_grad():
        states = decoder(torch.tensor([1, 2, 3]), torch.arange(3), DenseAttention(1, 3))
        assert states.dtype == torch.bfloat16
        assert decoder.logits(states).dtype == torch.float32
        assert decoder.logits(states[:0]).shape == (0, decoder.spec.vocab_size)
