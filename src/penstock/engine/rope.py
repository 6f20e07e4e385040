"""Rotary position embedding: the frequencies of each scaling kind, and the rotation.

Kinds and formulas as in Hugging Face's `modeling_rope_utils`, against which they are tested:
default (Su et al. 2021), linear (Chen et al. 2023), llama3 (Llama 3.1 release), yarn (Peng et al. 2023).
`dynamic` equals default up to the trained length; the engine serves it up to that length only, because
beyond it the angles of tokens already in the cache would depend on how the request arrived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penstock.base.errors import CheckpointError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Parameters of the rotary embedding; a field means what the key of that name means in config.json."""

    head_dim: int
    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    """Multiplies cos and sin (yarn)."""

    @staticmethod
    def from_config(config: Mapping[str, Any], head_dim: int) -> RopeSpec:
        """Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before).

        Raises:
            CheckpointError: a scaling kind that is not supported, or one without its parameters.
        """
        given: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = str(given.get("rope_type") or given.get("type") or "default")
        if kind not in KINDS:
            raise CheckpointError(
                f"rope scaling {kind!r} is not supported; supported: {', '.join(KINDS)}", param="rope_scaling"
            )
        partial = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
        if partial != 1.0:
            raise CheckpointError("partial rotary embedding is not supported", param="partial_rotary_factor")
        theta = float(given.get("rope_theta") or config.get("rope_theta") or 10_000.0)
        if kind == "default":
            return RopeSpec(head_dim, theta)
        longest = int(config["max_position_embeddings"])
        original = given.get("original_max_position_embeddings") or config.get(
            "original_max_position_embeddings"
        )
        return RopeSpec(
            head_dim=head_dim,
            theta=theta,
            kind=kind,
            factor=float(given["factor"]),
            original_max_positions=int(original or longest),
            low_freq_factor=float(given.get("low_freq_factor", 1.0)),
            high_freq_factor=float(given.get("high_freq_factor", 4.0)),
            beta_fast=float(given.get("beta_fast") or 32.0),
            beta_slow=float(given.get("beta_slow") or 1.0),
            truncate=bool(given.get("truncate", True)),
            attention_factor=_attention_factor(given) if kind == "yarn" else 1.0,
        )

    def inverse_frequencies(self) -> Tensor:
        """Radians per position of each pair: float32 (head_dim / 2,)."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        base = 1.0 / (self.theta**exponents)
        if self.kind == "linear":
            return base / self.factor
        if self.kind == "llama3":
            return self._llama3(base)
        if self.kind == "yarn":
            return self._yarn(base)
        return base

    def _llama3(self, base: Tensor) -> Tensor:
        wavelengths = 2 * math.pi / base
        span = self.high_freq_factor - self.low_freq_factor
        smooth = (self.original_max_positions / wavelengths - self.low_freq_factor) / span
        blended = (1 - smooth) * base / self.factor + smooth * base
        is_long = wavelengths > self.original_max_positions / self.low_freq_factor
        is_short = wavelengths < self.original_max_positions / self.high_freq_factor
        return torch.where(is_long, base / self.factor, torch.where(is_short, base, blended))

    def _yarn(self, base: Tensor) -> Tensor:
        low = self._correction_dim(self.beta_fast)
        high = self._correction_dim(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.head_dim - 1)
        if low == high:
            high += 0.001  # as the reference does: no division by zero
        ramp = ((torch.arange(self.head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
        return base / self.factor * ramp + base * (1 - ramp)

    def _correction_dim(self, num_rotations: float) -> float:
        """Dimension whose wavelength fits `num_rotations` times into the original context."""
        ratio = self.original_max_positions / (num_rotations * 2 * math.pi)
        return self.head_dim * math.log(ratio) / (2 * math.log(self.theta))


def _attention_factor(given: Mapping[str, Any]) -> float:
    """YaRN's temperature on the attention logits, split over cos and sin of queries and keys."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    factor = float(given["factor"])

    def scale(m: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

    mscale, mscale_all = given.get("mscale"), given.get("mscale_all_dim")
    if mscale and mscale_all:
        return scale(float(mscale)) / scale(float(mscale_all))
    return scale(1.0)


class Rotary(torch.nn.Module):
    """Cosines and sines of the positions of one step, computed once and used by every layer."""

    def __init__(self, spec: RopeSpec) -> None:
        super().__init__()
        self.scale = spec.attention_factor
        self.register_buffer("inverse_frequencies", spec.inverse_frequencies(), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions int64 (num_tokens,) -> cos, sin, each (num_tokens, 1, head_dim) of `dtype`.

        The angles are computed in float32 whatever the model's dtype: bfloat16 cannot hold position 257.
        """
        frequencies: Tensor = self.get_buffer("inverse_frequencies")
        angles = positions.float()[:, None] * frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates (num_tokens, num_heads, head_dim) by halves, the layout of Hugging Face checkpoints."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
