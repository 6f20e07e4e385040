"""Attention without a cache: what training sees is what serving computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dense_attention import DenseAttention
from penstock.engine.weights import load_checkpoint


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2-gqa7-odd", "qwen3-mqa"])
def test_dense_hidden_states_give_transformers_logits(name: str, written: Callable[[str], Any]) -> None:
    """Three sequences of 40 tokens in one flat batch."""
    directory, oracle = written(name)
    decoder = load_checkpoint(directory)
    tokens = torch.randint(97, (3, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        states = decoder(tokens.flatten(), torch.arange(40).repeat(3), DenseAttention(3, 40))
        ours = decoder.logits(states).view(3, 40, -1)
        torch.testing.assert_close(ours, oracle(tokens).logits, atol=1e-4, rtol=0)


def test_gradients_reach_every_parameter(written: Callable[[str], Any]) -> None:
    """The lab trains the very decoder that the engine serves."""
    decoder = load_checkpoint(written("qwen3-mqa").directory).requires_grad_(True).train()
    tokens = torch.randint(131, (2, 8), generator=torch.Generator().manual_seed(2))
    states = decoder(tokens.flatten(), torch.arange(8).repeat(2), DenseAttention(2, 8))
    decoder.logits(states).log_softmax(-1)[:, 0].sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in decoder.parameters()
    )
