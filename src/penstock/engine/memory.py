"""The KV pool: sized once at start, with the arithmetic to print."""

from __future__ import annotations

import os
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path

import torch

from penstock.base.errors import ConfigurationError
from penstock.engine.compute import Compute
from penstock.engine.formats import (
    head_format,
    kv_block_bytes,
    lookup_format,
    model_bytes,
    workspace_bytes,
)
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec

MIB = 1 << 20
CPU_KV_SHARE = 0.25
CUDA_KV_SHARE = 0.85
_MEMINFO = Path("/proc/meminfo")
# A container's memory limit, cgroup v2 and v1.
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the model runs and how much its KV pool holds."""

    compute: Compute
    num_blocks: int
    block_size: int
    max_model_len: int
    weight_bytes: int
    block_bytes: int
    workspace_bytes: int

    def describe(self) -> str:
        """One line of arithmetic for the start log."""
        pool = self.num_blocks * self.block_bytes
        return (
            f"weights {self.weight_bytes / MIB:.1f} MiB + "
            f"KV pool {self.num_blocks} blocks x {self.block_size} tokens x "
            f"{self.block_bytes // self.block_size} bytes = {pool / MIB:.1f} MiB + "
            f"workspace {self.workspace_bytes / MIB:.1f} MiB = "
            f"{(self.weight_bytes + pool + self.workspace_bytes) / MIB:.1f} MiB; "
            f"context {self.max_model_len} tokens"
        )


def plan_memory(spec: DecoderSpec, settings: EngineSettings, compute: Compute) -> MemoryPlan:
    """Chooses the size of the KV pool.

    Raises:
        ConfigurationError: the context asked for is longer than the model's or than the pool, or the pool
            cannot hold one block.
    """
    weights = model_bytes(spec, compute.weight_format, _embedding_format(spec, compute))
    workspace = workspace_bytes(spec, settings.max_batch_tokens, settings.max_sequences)
    block_bytes = kv_block_bytes(
        spec, compute.kv_format, settings.block_size, is_native=compute.kernels is not None
    )
    trained = spec.context_length
    if settings.max_model_len > trained:
        raise ConfigurationError(
            f"max_model_len {settings.max_model_len} is more than the model's {trained} positions",
            param="max_model_len",
        )
    wanted_len = settings.max_model_len or trained
    if settings.kv_cache_mb:
        num_blocks = settings.kv_cache_mb * MIB // block_bytes
    else:
        useful = settings.max_sequences * -(-wanted_len // settings.block_size)
        num_blocks = min(useful, _free_for_kv(compute.device, weights + workspace) // block_bytes)
    if num_blocks < 1:
        raise ConfigurationError(
            f"the KV pool cannot hold one block of {block_bytes / MIB:.1f} MiB; "
            "raise kv_cache_mb or free memory",
            param="kv_cache_mb",
        )
    capacity = num_blocks * settings.block_size
    if settings.max_model_len > capacity:
        raise ConfigurationError(
            f"max_model_len {settings.max_model_len} is more than the {capacity} tokens that the KV pool "
            "holds; raise kv_cache_mb or lower max_model_len",
            param="max_model_len",
        )
    max_len = min(wanted_len, capacity)
    return MemoryPlan(compute, num_blocks, settings.block_size, max_len, weights, block_bytes, workspace)


def _embedding_format(spec: DecoderSpec, compute: Compute) -> str:
    """Of the embedding's own table; empty where it is the head.

    PyTorch cannot look up in a quantised head.
    """
    if compute.kernels is not None:
        return "" if spec.tied_head else lookup_format(compute.weight_format)
    name = str(compute.dtype).removeprefix("torch.")
    return "" if spec.tied_head and head_format(compute.weight_format) == name else name


def _free_for_kv(device: torch.device, taken: int) -> int:
    """Bytes the KV pool may take, after `taken` bytes of weights and workspace, not loaded yet."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(max(free - taken, 0) * CUDA_KV_SHARE)
    return int(max(_available_on_cpu() - taken, 0) * CPU_KV_SHARE)


def _available_on_cpu() -> int:
    texts = {path: path.read_text("ascii") for path in (_MEMINFO, *_CGROUP_LIMITS) if path.is_file()}
    if _MEMINFO not in texts:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return available_bytes(texts[_MEMINFO], [texts[path] for path in _CGROUP_LIMITS if path in texts])


def available_bytes(meminfo: str, cgroup_limits: SequenceOf[str]) -> int:
    """Bytes a new allocation may have, from the text of /proc/meminfo and of the container's limit files.

    Memory that only caches files counts as free: after a download nearly all of it does.
    """
    kilobytes = next(line.split()[1] for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    limits = [int(text) for text in cgroup_limits if text.strip() != "max"]
    return min([int(kilobytes) * 1024, *limits])
