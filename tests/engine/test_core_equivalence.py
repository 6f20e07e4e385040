"""The same request gives the same tokens whatever the engine does around it, exactly, in float32."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from company import NEW_TOKENS, join_over_time, of_requests, requests
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from tiny_engine import build_core, new_tokens, run_to_end


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> dict[int, list[int]]:
    """Each request's tokens when nothing else runs, prompts in one chunk."""
    core = build_core(checkpoint, max_batch_tokens=512)
    return {sequence.id: new_tokens(run_to_end(core, [sequence]))[sequence.id] for sequence in requests()}


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
