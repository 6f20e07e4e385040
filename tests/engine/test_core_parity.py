"""Greedy generation with continuous batching against transformers' `generate`, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from native_kernels import kernels_here
from penstock.engine.sequence import Sequence
from tiny_checkpoints import CASES, Case, generated_by_transformers
from tiny_engine import build_core, greedy, new_tokens, run_to_end

# Of every family one checkpoint is asked at length, the others in brief: prompts and new tokens.
LONG, SHORT = (32, 64), (4, 32)
LONG_CASES = {"llama", "mistral-window", "qwen2", "qwen3"}


def prompts(vocab_size: int, count: int) -> list[list[int]]:
    """Random prompts of 1 to 47 tokens."""
    generator = torch.Generator().manual_seed(11)
    lengths = [1, 47, 5, 18, *torch.randint(1, 48, (count,), generator=generator).tolist()][:count]
    return [torch.randint(2, vocab_size, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_tokens_equal_transformers(case: Case, written: Callable[[str], Any]) -> None:
    """Prompts of different lengths share steps: prefill chunks of 16 tokens beside decodes."""
    directory, oracle = written(case.name)
    count, length = LONG if case.name in LONG_CASES else SHORT
    asked = prompts(oracle.config.vocab_size, count)
    expected = {
        index: generated_by_transformers(oracle, prompt, length) for index, prompt in enumerate(asked)
    }
    for kernels in kernels_here():
        core = build_core(
            directory, max_batch_tokens=16, kernels=kernels, block_size=4 if kernels == "torch" else 16
        )
        sequences = [Sequence(index, list(prompt), greedy(length)) for index, prompt in enumerate(asked)]
        assert new_tokens(run_to_end(core, sequences)) == expected
        assert core.stats().num_steps < length * count  # they did share steps
