"""What computes, and in which formats: decided once at start, with the reason to print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from penstock.base.errors import ConfigurationError
from penstock.engine.formats import LANES
from penstock.engine.native.build import KernelsUnavailableError
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec

# Below this, float32 on a CPU costs little memory and is as fast as bfloat16.
SMALL_MODEL_PARAMETERS = 100_000_000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelSize(Protocol):
    """What of a spec the choice of a dtype goes by."""

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        ...

    @property
    def checkpoint_dtype(self) -> str:
        """The dtype that config.json names."""
        ...


@dataclass(frozen=True, slots=True)
class Compute:
    """Device, kernels and formats of one engine."""

    device: torch.device
    dtype: torch.dtype
    """Of the weights that are not quantised, and of states between PyTorch's operations."""
    weight_format: str
    kv_format: str
    kernels: Any = None
    """The module of CPU kernels; None: PyTorch's operations."""
    why: str = ""
    """Why these kernels, for the start log."""

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the KV cache, where PyTorch holds it."""
        return _DTYPES[self.kv_format]

    def describe(self) -> str:
        """One line for the start log."""
        return (
            f"{'native' if self.kernels else 'torch'} kernels ({self.why}), "
            f"weights {self.weight_format}, KV {self.kv_format}"
        )


def choose_compute(spec: DecoderSpec, settings: EngineSettings, load_kernels: Callable[[], Any]) -> Compute:
    """Chooses what computes. `load_kernels` returns the CPU kernels or raises KernelsUnavailableError.

    Raises:
        ConfigurationError: what was asked for is not to be had here.
    """
    device = choose_device(settings)
    dtype = choose_dtype(spec, settings, device)
    kernels, why = _kernels(settings, device, dtype, load_kernels)
    if settings.kernels == "native" and kernels is None:
        raise ConfigurationError(f"kernels native were asked for, but {why}", param="kernels")
    if settings.deterministic and kernels is None:
        raise ConfigurationError(
            f"deterministic was asked for, which the native kernels alone are, but {why}",
            param="deterministic",
        )
    if settings.quantize in ("int8", "int4") and device.type != "cpu":
        raise ConfigurationError(
            f"quantize {settings.quantize} is for CPUs; this engine runs on {device}", param="quantize"
        )
    if settings.kv_dtype == "int8" and kernels is None:
        raise ConfigurationError(f"kv_dtype int8 needs the native kernels, but {why}", param="kv_dtype")
    name = str(dtype).removeprefix("torch.")
    weight_format = settings.quantize
    if weight_format == "auto":
        # Whoever names a dtype wants that precision.
        weight_format = "int8" if kernels is not None and settings.dtype == "auto" else "none"
    return Compute(
        device=device,
        dtype=dtype,
        weight_format=name if weight_format == "none" else weight_format,
        kv_format=name if settings.kv_dtype == "auto" else settings.kv_dtype,
        kernels=kernels,
        why=why,
    )


def choose_device(settings: EngineSettings) -> torch.device:
    """The device that is set, else the first GPU, else the CPU.

    Raises:
        ConfigurationError: a GPU is asked for and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "device cuda was asked for, but this torch sees no GPU; see the README for the CUDA build",
            param="device",
        )
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def choose_dtype(spec: ModelSize, settings: EngineSettings, device: torch.device) -> torch.dtype:
    """The dtype that is set, else by the model's size on a CPU, the checkpoint's elsewhere."""
    if settings.dtype != "auto":
        return _DTYPES[settings.dtype]
    if device.type == "cpu":
        return torch.float32 if spec.num_parameters < SMALL_MODEL_PARAMETERS else torch.bfloat16
    return _DTYPES.get(spec.checkpoint_dtype.removeprefix("torch."), torch.bfloat16)


def _kernels(
    settings: EngineSettings, device: torch.device, dtype: torch.dtype, load_kernels: Callable[[], Any]
) -> tuple[Any, str]:
    """The kernels or None, and why."""
    if device.type != "cpu":
        return None, f"the model runs on {device}"
    if settings.kernels == "torch":
        return None, "asked for"
    if dtype is torch.float16:
        return None, "float16 is not for CPUs"
    if settings.block_size % LANES:
        return None, f"block_size {settings.block_size} is no multiple of {LANES}"
    try:
        return load_kernels(), "AVX-512 VNNI"
    except KernelsUnavailableError as error:
        return None, str(error)
