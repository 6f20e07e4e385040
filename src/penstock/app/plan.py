"""What an engine will take, before it loads. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from penstock.app.budget import resident_bytes
from penstock.app.link import Planned
from penstock.engine.checkpoint import resolve
from penstock.engine.compute import choose_compute, choose_device, choose_dtype
from penstock.engine.encoder_spec import EncoderSpec
from penstock.engine.memory import MIB, plan_memory
from penstock.engine.native.build import load_kernels
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config

# States, queries, keys, values, scores and the MLP's, in widths of the MLP.
ROWS_OF_STATES = 4


def plan_engine(settings: EngineSettings) -> Planned:
    """This process as it is, plus what the model will take: weights, workspace, its whole KV pool.

    Raises:
        ConfigurationError: the model or a setting is refused.
    """
    config = read_config(resolve(settings.model))
    model, description = (
        _encoder(config, settings) if EncoderSpec.is_for(config) else _decoder(config, settings)
    )
    return Planned(resident_bytes(os.getpid()) + model, description)


def _decoder(config: Mapping[str, object], settings: EngineSettings) -> tuple[int, str]:
    spec = DecoderSpec.from_config(config)
    compute = choose_compute(spec, settings, lambda: load_kernels(Path(settings.kernel_cache)))
    memory = plan_memory(spec, settings, compute)
    model = memory.weight_bytes + memory.num_blocks * memory.block_bytes + memory.workspace_bytes
    return model, memory.describe()


def _encoder(config: Mapping[str, object], settings: EngineSettings) -> tuple[int, str]:
    """Its workspace is that of one batch: a few rows of states for every token."""
    spec = EncoderSpec.from_config(config)
    dtype = choose_dtype(spec, settings, choose_device(settings))
    weights = spec.num_parameters * dtype.itemsize
    workspace = settings.max_batch_tokens * ROWS_OF_STATES * spec.intermediate_size * dtype.itemsize
    return weights + workspace, (
        f"weights {weights / MIB:.1f} MiB + workspace {workspace / MIB:.1f} MiB = "
        f"{(weights + workspace) / MIB:.1f} MiB"
    )
