"""Engines built the way the replica builds them, on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import CASES, Case, write_checkpoint

from penstock.engine.core import EngineCore
from penstock.engine.memory import plan_memory
from penstock.engine.runner import Runner
from penstock.engine.scheduler import Limits
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 checkpoint of random weights."""
    case = next(case for case in CASES if case.name == "qwen3")
    directory = tmp_path_factory.mktemp("qwen3")
    write_checkpoint(case, directory)
    return directory


def build_core(
    directory: Path,
    *,
    block_size: int = 4,
    num_blocks: int = 256,
    max_sequences: int = 16,
    max_batch_tokens: int = 64,
) -> EngineCore:
    """An engine core over a checkpoint, with everything that scheduling depends on in the open."""
    settings = EngineSettings(
        model=str(directory), block_size=block_size, max_sequences=1, device="cpu", dtype="float32"
    )
    memory = plan_memory(DecoderSpec.from_config(read_config(directory)), settings)
    memory = type(memory)(
        **{field: getattr(memory, field) for field in memory.__dataclass_fields__} | {"num_blocks": num_blocks}
    )
    limits = Limits(max_sequences, max_batch_tokens, min(memory.max_model_len, num_blocks * block_size))
    return EngineCore(Runner.load(directory, memory), limits, num_blocks, block_size)


__all__ = ["CASES", "Case", "build_core"]
