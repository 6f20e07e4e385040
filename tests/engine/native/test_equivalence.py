"""On the native kernels a request gives the same tokens whatever runs around it, in every format."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from company import join_over_time, of_requests, requests
from native_kernels import needs_kernels
from penstock.engine.core import EngineCore
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from tiny_engine import build_core, new_tokens, run_to_end

pytestmark = needs_kernels
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4-int8": {"quantize": "int4", "kv_dtype": "int8"},
}


def core_of(directory: Path, name: str, **changes: Any) -> EngineCore:
    """An engine core on the native kernels."""
    return build_core(directory, **{"kernels": "native", "block_size": 16, **FORMATS[name], **changes})


@cache
def alone(directory: Path, name: str) -> dict[int, list[int]]:
    """Each request's tokens when nothing else runs, prompts in one chunk, nothing cached."""
    tokens = {}
    for sequence in requests():
        core = core_of(directory, name, max_batch_tokens=512)
        tokens |= new_tokens(run_to_end(core, [sequence]))
    return tokens


@pytest.mark.parametrize("name", FORMATS)
def test_chunk_and_block_sizes_do_not_change_tokens(name: str, checkpoint: Path) -> None:
    """One token per step, odd chunks, usual chunks, whole prompts; pages of 16, 32 and 48."""
    for max_batch_tokens in (1, 7, 64, 512):
        core = core_of(checkpoint, name, max_batch_tokens=max_batch_tokens)
        assert new_tokens(run_to_end(core, requests())) == alone(checkpoint, name)
    for block_size in (32, 48):
        core = core_of(checkpoint, name, block_size=block_size)
        assert new_tokens(run_to_end(core, requests())) == alone(checkpoint, name)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(2))
def test_company_cancels_and_preemption_do_not_change_tokens(name: str, seed: int, checkpoint: Path) -> None:
    """Strangers join, leave and are cancelled around the requests; then in a pool that holds few of them."""
    core = core_of(checkpoint, name, max_sequences=6, max_batch_tokens=32)
    assert of_requests(join_over_time(core, random.Random(seed), strangers=8)) == alone(checkpoint, name)
    tight = core_of(checkpoint, name, num_blocks=9, max_batch_tokens=32)
    assert of_requests(join_over_time(tight, random.Random(seed), strangers=3)) == alone(checkpoint, name)
    assert tight.stats().num_preemptions > 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_warm_prefix_does_not_change_tokens(name: str, checkpoint: Path) -> None:
    """The second time every prompt's full blocks come from the cache."""
    core = core_of(checkpoint, name)
    assert new_tokens(run_to_end(core, requests())) == alone(checkpoint, name)
    assert core.stats().prefix_hit_tokens == 0
    assert new_tokens(run_to_end(core, requests())) == alone(checkpoint, name)
    assert core.stats().prefix_hit_tokens == sum((len(one.tokens) - 1) // 16 * 16 for one in requests()) > 0


def test_a_step_of_nothing_but_prefill_and_one_of_nothing_but_decodes(checkpoint: Path) -> None:
    """A thousand times the same prompt, in whatever mixture: one answer."""
    core = core_of(checkpoint, "int8", max_sequences=16, max_batch_tokens=40, num_blocks=64)
    prompts = [
        Sequence(index, [5, 6, 7, *range(20, 20 + index % 3)], SamplingParams(max_tokens=6, temperature=0.0))
        for index in range(1000)
    ]
    answers = new_tokens(run_to_end(core, prompts))
    assert len({tuple(answers[index]) for index in range(1000) if index % 3 == 0}) == 1
    assert len({tuple(answers[index]) for index in range(1000)}) <= 3
