"""Adapters against peft: the same logits, on PyTorch's operations and on the kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_adapters import WEIGHTS, edit_tensors, read_adapter, tensor_names, with_peft, write_adapter
from native_kernels import EITHER, find_kernels, needs_kernels
from penstock.engine.adapter import Adapter
from penstock.engine.native.runner import NativeRunner
from penstock.engine.plan import Chunk, StepPlan
from penstock.engine.runner import TorchRunner, load_runner
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from tiny_checkpoints import CASES, Case
from tiny_engine import plan_for

Runner = TorchRunner | NativeRunner
TOLERANCE = 1e-4
LENGTH = 30
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
}
# How far the distribution may move, as a divergence in nats.
CLOSE = {"bfloat16": 0.02, "int8": 0.02, "int4": 0.5}

# Every way to say what is adapted and how much.
CONFIGS: dict[str, dict[str, Any]] = {
    "all": {},
    "all-linear": {"target_modules": "all-linear", "r": 4},
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 16, "lora_alpha": 5},
    "one-of-a-pair": {"target_modules": ["k_proj", "up_proj"], "r": 3},
    "down": {"target_modules": ["down_proj", "o_proj"], "r": 1},
    "regex": {"target_modules": r".*\.1\.(self_attn\.[qk]|mlp\.gate)_proj"},
    "first-layer": {"layers_to_transform": [0], "r": 5},
    "without": {"exclude_modules": ["v_proj", "model.layers.0.mlp.up_proj"], "r": 2},
    "rslora": {"use_rslora": True, "r": 7},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 16, "^model.layers.0.mlp.gate_proj": 9},
        "alpha_pattern": {"v_proj": 40, r".*\.0\..*down_proj": 1},
        "r": 6,
    },
    "patterns-rslora": {"rank_pattern": {"k_proj": 11}, "alpha_pattern": {"k_proj": 3}, "use_rslora": True},
    "wide": {"r": 40, "lora_alpha": 8},
}


def runner_for(directory: Path, kernels: str, **changes: Any) -> Runner:
    """A checkpoint in float32."""
    settings = {"kernels": kernels, "num_blocks": 64, "block_size": 16, **changes}
    return load_runner(directory, plan_for(directory, **settings), threads=2)


def tokens_of(seed: int, vocab_size: int, length: int = LENGTH) -> list[int]:
    """Random tokens."""
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(runner: Runner, *asked: tuple[list[int], Adapter | None]) -> list[Tensor]:
    """The logits at the last position of every prompt, computed in one step."""
    chunks, first = [], 0
    for index, (tokens, adapter) in enumerate(asked):
        count = -(-len(tokens) // 16)
        table = list(range(first, first + count))
        sequence = Sequence(index, tokens, SamplingParams(max_tokens=1), block_table=table, adapter=adapter)
        chunks.append(Chunk(sequence, 0, len(tokens)))
        first += count
    return list(runner.run(StepPlan(tuple(chunks))).clone())


@torch.inference_mode()
def oracle_logits(model: Any, tokens: list[int]) -> Tensor:
    """transformers' logits at the last position."""
    logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    return logits


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_family_equals_peft(
    case: Case, kernels: str, written: Callable[[str], Any], tmp_path: Path
) -> None:
    """Merged into the weights and beside them; and an adapter that changed nothing would not be tested."""
    directory, oracle = written(case.name)
    folder = write_adapter(oracle, tmp_path, r=5)
    runner = runner_for(directory, kernels)
    tokens = tokens_of(1, oracle.config.vocab_size)
    (ours,) = logits_of(runner, (tokens, read_adapter(runner, directory, folder)))
    for merged in (True, False):
        expected = oracle_logits(with_peft(oracle, folder, merged=merged), tokens)
        torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)
    assert (ours - oracle_logits(oracle, tokens)).abs().max() > 0.1


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("name", ["llama-mha", "qwen2-gqa7-odd"])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_equals_peft(
    config: str, name: str, kernels: str, written: Callable[[str], Any], tmp_path: Path
) -> None:
    """Whatever is adapted, at whatever rank and scale; heads of 6 end within a vector."""
    directory, oracle = written(name)
    folder = write_adapter(oracle, tmp_path, **CONFIGS[config])
    runner = runner_for(directory, kernels)
    tokens = tokens_of(2, oracle.config.vocab_size)
    (ours,) = logits_of(runner, (tokens, read_adapter(runner, directory, folder)))
    expected = oracle_logits(with_peft(oracle, folder, merged=True), tokens)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def mixture(
    oracle: Any, runner: Runner, directory: Path, tmp_path: Path
) -> list[tuple[list[int], Adapter | None]]:
    """Requests of different lengths with three adapters of different shapes, one of them twice, and none."""
    configs = ("attention", "wide", "patterns")
    adapters: list[Adapter | None] = [
        read_adapter(runner, directory, write_adapter(oracle, tmp_path / name, seed=i, **CONFIGS[name]))
        for i, name in enumerate(configs)
    ]
    turns = [adapters[0], None, adapters[1], adapters[2], adapters[0], None]
    vocab_size = oracle.config.vocab_size
    return [(tokens_of(i, vocab_size, 1 + 7 * i), adapter) for i, adapter in enumerate(turns)]


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("name", ["llama-biases", "qwen2-gqa7-odd", "qwen3"])
def test_requests_with_different_adapters_share_a_step(
    name: str, kernels: str, written: Callable[[str], Any], tmp_path: Path
) -> None:
    """Each gets the logits it gets alone, on the kernels the same bits."""
    directory, oracle = written(name)
    runner = runner_for(directory, kernels)
    asked = mixture(oracle, runner, directory, tmp_path)
    together = logits_of(runner, *asked)
    for mine, request in zip(together, asked, strict=True):
        (alone,) = logits_of(runner, request)
        assert torch.allclose(mine, alone, atol=0 if kernels == "native" else 1e-5, rtol=0)
    assert (
        len({tuple(row.tolist()) for row in logits_of(runner, *((asked[3][0], one) for _, one in asked[:4]))})
        == 4
    )


@needs_kernels
@pytest.mark.parametrize("weights", FORMATS)
def test_the_number_of_threads_changes_no_bit(
    weights: str, written: Callable[[str], Any], tmp_path: Path
) -> None:
    """Which thread takes which rows and ranks is chance."""
    directory, oracle = written("qwen3")
    memory = plan_for(directory, kernels="native", num_blocks=64, block_size=16, **FORMATS[weights])
    runners = [load_runner(directory, memory, threads) for threads in (1, 3)]
    asked = mixture(oracle, runners[0], directory, tmp_path)
    one, three = (logits_of(runner, *asked) for runner in runners)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("zero", ["A", "B"])
def test_an_adapter_of_zeros_changes_nothing(
    zero: str, kernels: str, weights: str, written: Callable[[str], Any], tmp_path: Path
) -> None:
    """Not one bit of it, whichever factor is 0."""
    directory, oracle = written("qwen3")
    folder = write_adapter(oracle, tmp_path)
    names = [name for name in tensor_names(folder) if f"lora_{zero}" in name]
    tensors = load_file(folder / WEIGHTS)
    edit_tensors(folder, **{name: torch.zeros_like(tensors[name]) for name in names})
    runner = runner_for(directory, kernels, **FORMATS[weights])
    tokens = tokens_of(3, oracle.config.vocab_size)
    (plain,) = logits_of(runner, (tokens, None))
    (ours,) = logits_of(runner, (tokens, read_adapter(runner, directory, folder)))
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("weights", CLOSE)
def test_coarser_weights_stay_close_to_peft(
    weights: str, kernels: str, written: Callable[[str], Any], tmp_path: Path
) -> None:
    """The adapter itself is not quantised."""
    directory, oracle = written("qwen3")
    folder = write_adapter(oracle, tmp_path)
    runner = runner_for(directory, kernels, **FORMATS[weights])
    tokens = tokens_of(4, oracle.config.vocab_size)
    (ours,) = logits_of(runner, (tokens, read_adapter(runner, directory, folder)))
    exact = oracle_logits(with_peft(oracle, folder), tokens).log_softmax(-1)
    divergence = (exact.exp() * (exact - ours.log_softmax(-1))).sum()
    assert divergence.item() < CLOSE[weights]


@needs_kernels
def test_what_does_not_fit_is_refused_by_the_kernels(written: Callable[[str], Any], tmp_path: Path) -> None:
    """A defect of the caller ends in an exception, not in foreign memory."""
    directory, _ = written("qwen3")
    other_directory, other = written("qwen3-wide-heads")
    foreign = runner_for(other_directory, "native")
    adapter = read_adapter(foreign, other_directory, write_adapter(other, tmp_path))
    with pytest.raises(ValueError, match="another shape"):
        logits_of(runner_for(directory, "native"), ([1, 2], adapter))
    kernels = find_kernels()
    with pytest.raises(ValueError, match="A is"):
        kernels.LowRank(np.zeros((3, 8), np.float32), np.zeros((8, 2), np.float32))
    with pytest.raises(ValueError, match="may not be empty"):
        kernels.LowRank(np.zeros((0, 8), np.float32), np.zeros((8, 0), np.float32))
