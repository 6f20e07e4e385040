"""Requests with adapters in the whole engine: any company, chunks, caches, preemption."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from company import join_over_time, of_requests, requests
from lora_adapters import read_adapter, with_peft, write_adapter
from native_kernels import EITHER, needs_kernels
from penstock.engine.adapter import Adapter
from penstock.engine.core import EngineCore
from penstock.engine.sequence import Sequence
from tiny_checkpoints import generated_by_transformers
from tiny_engine import build_core, greedy, new_tokens, run_to_end

FORMATS: dict[str, dict[str, Any]] = {"float32": {}, "int8": {"quantize": "int8"}}
Adapted = Callable[..., tuple[EngineCore, list[Adapter | None]]]


@pytest.fixture(scope="module")
def folders(written: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of different shapes."""
    oracle = written("qwen3").oracle
    return [
        write_adapter(oracle, tmp_path_factory.mktemp("one"), seed=1, r=5),
        write_adapter(
            oracle, tmp_path_factory.mktemp("two"), seed=2, r=20, target_modules=["v_proj", "down_proj"]
        ),
    ]


@pytest.fixture
def adapted(checkpoint: Path, folders: list[Path]) -> Adapted:
    """Builds an engine core on either kernels; gives it with no adapter and the two."""

    def build(kernels: str, **changes: Any) -> tuple[EngineCore, list[Adapter | None]]:
        core = build_core(checkpoint, **{"kernels": kernels, "block_size": 16, **changes})
        return core, [None, *(read_adapter(core.runner, checkpoint, folder) for folder in folders)]

    return build


def given(adapters: list[Adapter | None]) -> list[Sequence]:
    """The usual requests, each with an adapter or none."""
    sequences = requests()
    for sequence in sequences:
        sequence.adapter = adapters[sequence.id % len(adapters)]
    return sequences


@pytest.fixture
def alone(adapted: Adapted) -> Callable[[str], dict[int, list[int]]]:
    """Each request's tokens on the kernels when nothing else runs, its prompt in one chunk."""

    def tokens_of(name: str) -> dict[int, list[int]]:
        tokens = {}
        for index in range(len(requests())):
            core, adapters = adapted("native", max_batch_tokens=512, **FORMATS[name])
            tokens |= new_tokens(run_to_end(core, [given(adapters)[index]]))
        return tokens

    return tokens_of


@needs_kernels
@pytest.mark.parametrize("name", FORMATS)
def test_chunks_company_and_preemption_do_not_change_tokens(
    name: str, adapted: Adapted, alone: Callable[[str], dict[int, list[int]]]
) -> None:
    """One token per step, odd chunks, whole prompts; a warm cache; strangers, in a pool that holds few."""
    expected = alone(name)
    for max_batch_tokens in (1, 7, 512):
        core, adapters = adapted("native", max_batch_tokens=max_batch_tokens, **FORMATS[name])
        assert new_tokens(run_to_end(core, given(adapters))) == expected
    assert new_tokens(run_to_end(core, given(adapters))) == expected
    assert core.stats().prefix_hit_tokens > 0
    tight, adapters = adapted("native", num_blocks=9, max_batch_tokens=32, **FORMATS[name])
    outputs = join_over_time(tight, random.Random(3), strangers=6, joining=given(adapters))
    assert of_requests(outputs) == expected
    assert tight.stats().num_preemptions > 0


@pytest.mark.parametrize("kernels", EITHER)
def test_greedy_answers_are_those_of_peft(
    kernels: str, adapted: Adapted, folders: list[Path], written: Callable[[str], Any]
) -> None:
    """The same prompt with each adapter and with none, in the same steps."""
    core, adapters = adapted(kernels, max_batch_tokens=16)
    prompt = [5, 99, 17, 64, 3, 128, 42, 7, 7, 11, 90, 31, 2, 55, 71, 8, 100, 12]
    sequences = [Sequence(i, list(prompt), greedy(20), adapter=one) for i, one in enumerate(adapters)]
    answers = new_tokens(run_to_end(core, sequences))
    oracle = written("qwen3").oracle
    models = [oracle, *(with_peft(oracle, folder, merged=True) for folder in folders)]
    assert answers == {i: generated_by_transformers(one, prompt, 20) for i, one in enumerate(models)}
    assert len(set(map(tuple, answers.values()))) == 3


@pytest.mark.parametrize("salt", ["", "s"])
def test_cached_prefixes_are_not_shared_between_adapters(
    salt: str, adapted: Adapted, checkpoint: Path, folders: list[Path]
) -> None:
    """Nor with the same files loaded again, nor by a salt that looks like an adapter's; with itself, yes."""
    core, adapters = adapted("torch")
    again = read_adapter(core.runner, checkpoint, folders[0])
    prompt = list(range(2, 66))

    def num_cached(index: int, adapter: Adapter | None, cache_salt: str = salt) -> int | None:
        one = Sequence(index, list(prompt), greedy(2), adapter=adapter, cache_salt=cache_salt)
        run_to_end(core, [one])
        return one.num_cached_tokens

    fresh = [*adapters, again]
    assert [num_cached(i, adapter) for i, adapter in enumerate(fresh)] == [0] * 4
    assert [num_cached(10 + i, adapter) for i, adapter in enumerate(fresh)] == [48] * 4
    assert [num_cached(20 + i, None, f"{one.number}:{salt}") for i, one in enumerate(fresh) if one] == [0] * 3
    assert num_cached(30, None, f"0:{salt}") == 0


@pytest.mark.parametrize("kernels", EITHER)
def test_the_last_request_frees_an_adapters_weights(kernels: str, adapted: Adapted) -> None:
    """Not before, so that it ends as it began."""
    core, adapters = adapted(kernels)
    expected = new_tokens(run_to_end(core, [Sequence(1, [4, 5, 6], greedy(9), adapter=adapters[1])]))[1]
    core.add(Sequence(2, [4, 5, 6], greedy(9), adapter=adapters[1]))
    core.step()
    assert adapters[1] is not None
    is_there = weakref.ref(adapters[1])
    adapters.clear()
    gc.collect()
    assert is_there() is not None
    outputs = []
    while core.has_work:
        outputs += core.step()
    assert new_tokens(outputs)[2] == expected[1:]
    gc.collect()
    assert is_there() is None
