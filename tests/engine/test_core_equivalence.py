"""The same request gives the same tokens whatever the engine does around it, exactly, in float32."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.engine.core import EngineCore
from penstock.engine.sequence import Output, SamplingParams, Sequence
from tiny_engine import build_core, new_tokens, run_to_end

VOCAB_SIZE = 131
NEW_TOKENS = 24
# One request per way to draw: greedy and each filter, and all filters together.
SAMPLING = [
    SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0),
    SamplingParams(max_tokens=NEW_TOKENS, seed=1),
    SamplingParams(max_tokens=NEW_TOKENS, temperature=1.7, seed=2),
    SamplingParams(max_tokens=NEW_TOKENS, top_k=20, seed=3),
    SamplingParams(max_tokens=NEW_TOKENS, top_p=0.8, seed=4),
    SamplingParams(max_tokens=NEW_TOKENS, min_p=0.05, seed=5),
    SamplingParams(max_tokens=NEW_TOKENS, temperature=0.7, top_k=50, top_p=0.9, min_p=0.01, seed=6),
]


def requests() -> list[Sequence]:
    """Fresh sequences of lengths 3 to 45, one per sampling."""
    generator = torch.Generator().manual_seed(5)
    return [
        Sequence(index, torch.randint(VOCAB_SIZE, (3 + 7 * index,), generator=generator).tolist(), sampling)
        for index, sampling in enumerate(SAMPLING)
    ]


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> dict[int, list[int]]:
    """Each request's tokens when nothing else runs, prompts in one chunk."""
    core = build_core(checkpoint, max_batch_tokens=512)
    return {sequence.id: new_tokens(run_to_end(core, [sequence]))[sequence.id] for sequence in requests()}


def join_over_time(core: EngineCore, rng: random.Random, strangers: int) -> list[Output]:
    """The requests in a random order at random steps, among strangers some of which are cancelled."""
    joining = requests() + [
        Sequence(
            1000 + index,
            [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 60))],
            SamplingParams(max_tokens=rng.randint(1, 30), temperature=1.3, top_k=index % 3 * 9, seed=index),
        )
        for index in range(strangers)
    ]
    rng.shuffle(joining)
    outputs: list[Output] = []
    while joining or core.has_work:
        while joining and rng.random() < 0.4:
            core.add(joining.pop())
        if rng.random() < 0.3:
            core.cancel(1000 + rng.randrange(max(strangers, 1)))
        outputs += core.step()
        core.scheduler.check()
    return outputs


def of_requests(outputs: list[Output]) -> dict[int, list[int]]:
    """Tokens of the requests, strangers left out."""
    return {identity: tokens for identity, tokens in new_tokens(outputs).items() if identity < 1000}


@pytest.mark.parametrize("max_batch_tokens", [1, 7, 64, 512])
def test_the_chunk_size_does_not_change_tokens(
    max_batch_tokens: int, checkpoint: Path, alone: dict[int, list[int]]
) -> None:
    """One token per step, odd chunks, usual chunks, whole prompts."""
    core = build_core(checkpoint, max_batch_tokens=max_batch_tokens)
    assert new_tokens(run_to_end(core, requests())) == alone


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_the_block_size_does_not_change_tokens(
    block_size: int, checkpoint: Path, alone: dict[int, list[int]]
) -> None:
    """Also where blocks end inside chunks."""
    core = build_core(checkpoint, block_size=block_size, num_blocks=1024 // block_size)
    assert new_tokens(run_to_end(core, requests())) == alone


@pytest.mark.parametrize("seed", range(4))
def test_company_and_order_of_arrival_do_not_change_tokens(
    seed: int, checkpoint: Path, alone: dict[int, list[int]]
) -> None:
    """Strangers with other filters join, leave and are cancelled around the requests."""
    core = build_core(checkpoint, max_sequences=6, max_batch_tokens=32)
    assert of_requests(join_over_time(core, random.Random(seed), strangers=8)) == alone


@pytest.mark.parametrize("seed", range(3))
def test_preemption_does_not_change_tokens(seed: int, checkpoint: Path, alone: dict[int, list[int]]) -> None:
    """A pool that holds two or three of seven requests: they are thrown out and computed again."""
    core = build_core(checkpoint, block_size=4, num_blocks=26, max_batch_tokens=32)
    assert of_requests(join_over_time(core, random.Random(seed), strangers=3)) == alone
    assert core.stats().num_preemptions > 0


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-gqa7-odd"])
def test_windows_and_odd_sizes_survive_preemption(name: str, written: Callable[[str], Any]) -> None:
    """The paths that differ by architecture: windows over scattered blocks, seven heads on one."""
    directory = written(name).directory
    small = [
        Sequence(index, list(range(1, 12 + index)), SamplingParams(max_tokens=NEW_TOKENS, seed=index))
        for index in range(4)
    ]
    again = [Sequence(sequence.id, list(sequence.tokens), sequence.sampling) for sequence in small]
    roomy = build_core(directory, max_batch_tokens=512)
    tight = build_core(directory, block_size=3, num_blocks=20, max_batch_tokens=9)
    assert new_tokens(run_to_end(tight, again)) == new_tokens(run_to_end(roomy, small))
    assert roomy.stats().num_preemptions == 0
    assert tight.stats().num_preemptions > 0


def test_the_seed_changes_tokens(checkpoint: Path) -> None:
    """So that the equalities above say something about sampling."""
    core = build_core(checkpoint)
    tokens = new_tokens(
        run_to_end(
            core, [Sequence(seed, [7, 8, 9], SamplingParams(max_tokens=16, seed=seed)) for seed in (1, 2)]
        )
    )
    assert tokens[1] != tokens[2]
