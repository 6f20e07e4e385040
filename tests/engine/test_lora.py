"""Adapters against peft: the same logits, on PyTorch's operations and on the kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_adapters import read_adapter, with_peft, write_adapter
from native_kernels import EITHER
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
