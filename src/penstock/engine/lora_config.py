"""peft's adapter_config.json: which modules an adapter changes, with which rank and scale. No torch here.

Whatever the engine cannot honour is refused here, by name, before a weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from penstock.base.errors import CheckpointError
from penstock.engine.name_patterns import first_matches
from penstock.protocol.strict import shown

CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
_Rank = Annotated[int, Meta(ge=1, le=1 << 16)]
_Names = str | list[str] | None
_T = TypeVar("_T")

# What says how the adapter was trained or whence it came, and nothing of what it computes.
_NO_MATTER = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
        "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version",
        "qalora_group_size", "revision",
    }
)  # fmt: skip
# Other ways to begin (pissa, olora, corda, loftq, lora_ga) change the base's weights too.
_PURE_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


class _File(msgspec.Struct, frozen=True):
    """The keys that matter."""

    peft_type: str
    r: _Rank
    lora_alpha: float
    target_modules: _Names
    exclude_modules: _Names = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: _Names = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    bias: str = "none"
    task_type: str | None = None
    init_lora_weights: Any = True


_DECODER = msgspec.json.Decoder(_File)
_KNOWN = frozenset(_File.__struct_fields__) | _NO_MATTER


@dataclass(frozen=True, slots=True)
class Part:
    """How one module is changed: y += scale * B (A x)."""

    rank: int
    scale: float


def read_parts(directory: Path, modules: Sequence[str]) -> dict[str, Part]:
    """The modules that the adapter in `directory` changes, of those of the base model that it might.

    Raises:
        CheckpointError: the file is missing or wrong, or asks for what is not supported.
    """
    path = directory / CONFIG
    try:
        return _parts(_read(path), modules)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read(path: Path) -> _File:
    if not path.is_file():  # nor is a pipe, which would be waited for
        raise CheckpointError(f"{path.parent} holds no {CONFIG}: not an adapter's folder")
    with path.open("rb") as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"it is larger than {MAX_CONFIG_BYTES} bytes")
    config = _DECODER.decode(text)
    if config.peft_type != "LORA":
        raise ValueError(f"peft_type {shown(config.peft_type)!r} is not supported, only LORA is")
    if config.bias != "none":
        raise ValueError(f"bias {shown(config.bias)!r} is not supported, only 'none' is")
    if config.task_type not in (None, "CAUSAL_LM"):
        raise ValueError(f"task_type {shown(config.task_type)!r} is not supported")
    if config.init_lora_weights not in _PURE_BEGINNINGS:
        raise ValueError(
            f"init_lora_weights {shown(repr(config.init_lora_weights))} changes the base model too, which "
            "is not supported; save the adapter with peft's path_initial_model_for_weight_conversion"
        )
    for key, value in msgspec.json.decode(text).items():
        if key not in _KNOWN and value:
            raise ValueError(f"{shown(key)!r} is set, which is not supported")
    return config


def _parts(config: _File, modules: Sequence[str]) -> dict[str, Part]:
    targets = _targets(config, modules)
    if not targets:
        raise ValueError("target_modules names no linear layer of this model")
    ranks = _by_pattern("rank_pattern", config.rank_pattern or {}, targets, config.r)
    alphas = _by_pattern("alpha_pattern", config.alpha_pattern or {}, targets, config.lora_alpha)
    parts = {}
    for name, rank, alpha in zip(targets, ranks, alphas, strict=True):
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        if not math.isfinite(scale):
            raise ValueError(f"the scale of {name} is no finite number")
        parts[name] = Part(rank, scale)
    return parts


def _targets(config: _File, modules: Sequence[str]) -> list[str]:
    """As peft chooses them."""
    excluded = _named("exclude_modules", config.exclude_modules or [], modules)
    left = [name for name in modules if name not in excluded]
    wanted = config.target_modules
    if wanted is None:
        raise ValueError("target_modules is missing")
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        return [name for name in left if name.startswith("model.layers.")]
    chosen = _named("target_modules", wanted, left)
    if isinstance(wanted, str) or config.layers_to_transform in (None, []):
        return [name for name in left if name in chosen]
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    if patterns and not {"layers", "model.layers"} & set(patterns):
        raise ValueError(f"layers_pattern {shown(repr(patterns))} does not name this model's layers")
    layers = config.layers_to_transform
    numbers = {layers} if isinstance(layers, int) else set(layers or ())
    return [name for name in left if name in chosen and (name in wanted or _layer(name) in numbers)]


def _layer(module: str) -> int | None:
    parts = module.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else None


def _named(key: str, wanted: str | list[str], modules: Sequence[str]) -> set[str]:
    """Those that `wanted` names: a regular expression, or a list of names and ends of names."""
    if isinstance(wanted, str):
        found = _first_matches(key, [wanted], modules)
        return {name for name, index in zip(modules, found, strict=True) if index is not None}
    ends = tuple(f".{end}" for end in wanted)
    return {name for name in modules if f".{name}".endswith(ends)}


def _by_pattern(key: str, pattern: dict[str, _T], modules: Sequence[str], default: _T) -> list[_T]:
    if not pattern:
        return [default] * len(modules)
    values = list(pattern.values())
    # As peft does: a pattern is for the end of a name, from a dot on.
    found = _first_matches(key, [rf"(?:.*\.)?(?:{one})" for one in pattern], modules)
    return [default if index is None else values[index] for index in found]


def _first_matches(key: str, patterns: Sequence[str], modules: Sequence[str]) -> list[int | None]:
    try:
        return first_matches(patterns, modules)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
