"""Decoders' states pooled as they are computed: transformers', however the prompt was cut or cached."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from native_kernels import EITHER
from penstock.engine.core import EngineCore
from penstock.engine.pooling import Pooled, Pooling, Vector, pool
from penstock.engine.sequence import FinishReason
from penstock.engine.sequence import Sequence as Running
from tiny_engine import build_core, greedy, run_to_end

TOLERANCE = 1e-5


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random token ids."""
    draw = random.Random(seed)
    return [[draw.randrange(131) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def embed(core: EngineCore, texts: Sequence[list[int]], pooling: Pooling, first_id: int = 1) -> list[Vector]:
    """Each text's vector, all queued together."""
    sequences = [
        Running(first_id + index, list(text), greedy(0), readout=Pooled(pooling, len(text)))
        for index, text in enumerate(texts)
    ]
    outputs = run_to_end(core, sequences)
    assert [(output.token, output.finish) for output in outputs] == [(None, FinishReason.LENGTH)] * len(texts)
    return [sequence.readout.vector for sequence in sequences]


@torch.inference_mode()
def oracle_vector(oracle: Any, text: Sequence[int], pooling: Pooling) -> Vector:
    """From transformers' last hidden states, after the last norm."""
    return pool(oracle.model(torch.tensor([text])).last_hidden_state[0], pooling).numpy()


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2", "qwen3-wide-heads"])
def test_vectors_are_transformers(
    written: Callable[[str], Any], name: str, pooling: Pooling, kernels: str
) -> None:
    """Of prompts cut into chunks of at most 16 tokens, side by side; a second time from a warm cache."""
    directory, oracle = written(name)
    size = 16 if kernels == "native" else 4
    core = build_core(directory, max_batch_tokens=16, max_sequences=5, kernels=kernels, block_size=size)
    texts = [*prompts(6, 60), [7]]
    for round_ in range(2):
        vectors = embed(core, texts, pooling, first_id=1 + 100 * round_)
        for text, vector in zip(texts, vectors, strict=True):
            np.testing.assert_allclose(vector, oracle_vector(oracle, text, pooling), atol=TOLERANCE)
    assert core.stats().num_cached_blocks > 0


def test_the_last_state_comes_from_the_cache_and_the_mean_does_not(checkpoint: Path) -> None:
    """A mean needs every position computed; the last needs its own alone."""
    core = build_core(checkpoint)
    text = list(range(40))
    embed(core, [text], Pooling.LAST, 1)
    before = core.stats().prefix_hit_tokens
    embed(core, [text], Pooling.MEAN, 2)
    embed(core, [text], Pooling.CLS, 3)
    assert core.stats().prefix_hit_tokens == before
    embed(core, [text], Pooling.LAST, 4)
    assert core.stats().prefix_hit_tokens == before + 36


def test_generation_beside_it_does_not_change_a_vector(checkpoint: Path) -> None:
    """Nor does preemption, which computes positions twice."""
    texts = prompts(4, 40, seed=5)
    quiet = embed(build_core(checkpoint), texts, Pooling.MEAN)
    core = build_core(checkpoint, num_blocks=30, max_batch_tokens=12, max_sequences=6)
    sequences = [Running(50 + i, [3 + i] * 6, greedy(50)) for i in range(2)]
    sequences += [
        Running(i, text, greedy(0), readout=Pooled(Pooling.MEAN, len(text))) for i, text in enumerate(texts)
    ]
    run_to_end(core, sequences)
    for sequence, vector in zip(sequences[2:], quiet, strict=True):
        np.testing.assert_allclose(sequence.readout.vector, vector, atol=1e-6)


class Rows:
    """A StepView of given states."""

    def __init__(self, states: Tensor) -> None:
        self._states = states

    def states(self, start: int, end: int) -> Tensor:
        """See StepView."""
        return self._states[start:end]

    def logits(self, start: int, end: int) -> Tensor:
        """See StepView; nobody asks."""
        raise NotImplementedError


@given(
    length=st.integers(1, 12),
    pooling=st.sampled_from(Pooling),
    cuts=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), max_size=8),
)
def test_every_position_counts_once(length: int, pooling: Pooling, cuts: list[tuple[int, int]]) -> None:
    """However the prompt is cut, and whatever is computed again."""
    states = torch.randn(length, 3, generator=torch.Generator().manual_seed(length))
    pooled = Pooled(pooling, length)
    for start, count in [*cuts, (0, length)]:
        end = min(start + count, pooled.num_wanted)  # as the core asks
        if start <= pooled.num_read and start < end:
            pooled.read(Rows(torch.cat([torch.full((2, 3), 9.0), states[start:end]])), 2, start, end - start)
    np.testing.assert_allclose(pooled.vector, pool(states, pooling).numpy(), atol=1e-6)
