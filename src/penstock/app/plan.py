"""What an engine will take, before it loads. Imports torch."""

from __future__ import annotations

import os
from pathlib import Path

from penstock.app.budget import resident_bytes
from penstock.app.link import Planned
from penstock.engine.checkpoint import resolve
from penstock.engine.compute import choose_compute
from penstock.engine.memory import plan_memory
from penstock.engine.native.build import load_kernels
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config


def plan_engine(settings: EngineSettings) -> Planned:
    """This process as it is, plus the model's weights, its whole KV pool and its workspace.

    Raises:
        ConfigurationError: the model or a setting is refused.
    """
    spec = DecoderSpec.from_config(read_config(resolve(settings.model)))
    compute = choose_compute(spec, settings, lambda: load_kernels(Path(settings.kernel_cache)))
    memory = plan_memory(spec, settings, compute)
    model = memory.weight_bytes + memory.num_blocks * memory.block_bytes + memory.workspace_bytes
    return Planned(resident_bytes(os.getpid()) + model, memory.describe())
