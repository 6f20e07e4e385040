"""Greedy generation with continuous batching against transformers' `generate`, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from native_kernels import EITHER
from penstock.engine.sequence import Sequence
from tiny_checkpoints import CASES, Case
from tiny_engine import build_core, greedy, new_tokens, run_to_end

NEW_TOKENS = 32
LENGTHS = (1, 5, 18, 47)


def prompts(vocab_size: int) -> list[list[int]]:
    """Random prompts of different lengths."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(2, vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


def generated_by_transformers(model: Any, prompt: list[int]) -> list[int]:
    """The oracle's continuation, end tokens not heeded."""
    ids = torch.tensor([prompt])
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_tokens_equal_transformers(case: Case, kernels: str, written: Callable[[str], Any]) -> None:
    """Four prompts of different lengths share steps: prefill chunks of 16 tokens beside decodes."""
    directory, oracle = written(case.name)
    core = build_core(
        directory, max_batch_tokens=16, kernels=kernels, block_size=4 if kernels == "torch" else 16
    )
    sequences = [
        Sequence(index, prompt, greedy(NEW_TOKENS))
        for index, prompt in enumerate(prompts(oracle.config.vocab_size))
    ]
    expected = {
        sequence.id: generated_by_transformers(oracle, list(sequence.tokens)) for sequence in sequences
    }
    assert new_tokens(run_to_end(core, sequences)) == expected
    assert core.stats().num_steps < NEW_TOKENS * len(sequences)  # they did share steps
