"""Quantised linear layers on PyTorch's operations, for CPUs without the native kernels.

A method takes a weight and gives a module that stands where `nn.Linear` stood. Quantisation is the same as in
the native kernels (int8: a scale per output channel, a scale per row of activations, both symmetric; int4: a
float16 scale per 32 weights of a row), so that each can be held against the other.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from penstock.engine.formats import GROUP


class LinearMethod(Protocol):
    """How a linear layer's weight is kept and multiplied."""

    def __call__(self, weight: Tensor) -> nn.Module:
        """A module mapping (..., inputs) to (..., outputs) for `weight` (outputs, inputs).

        Its parameter or buffer `bias` is None until it is set.
        """
        ...


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """float (n, k) -> int8 codes (n, k) and float32 scales (n, 1), codes times scale near the values."""
    wide = values.float()
    largest = wide.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127.0 / largest, 0.0)
    return (wide * inverse).round().to(torch.int8), largest / 127.0


def quantize_groups(values: Tensor) -> tuple[Tensor, Tensor]:
    """float (n, k), k a multiple of 32 -> int8 codes -8..7 (n, k) and float16 scales (n, k / 32)."""
    groups = values.float().reshape(*values.shape[:-1], -1, GROUP)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (extreme / -8.0).half()
    steps = scales.float()
    inverse = torch.where(steps != 0, 1.0 / steps, 0.0)
    codes = (groups * inverse).round().clamp(-8, 7).to(torch.int8)
    return codes.flatten(-2), scales.squeeze(-1)


class Int8Linear(nn.Module):
    """int8 weights times int8 rows, exact sums in int32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        codes, scales = quantize_rows(weight)
        self.register_buffer("codes", codes.t())
        self.register_buffer("scales", scales.t())
        self.bias: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        """(rows, inputs) -> (rows, outputs), dtype kept."""
        rows, scales = quantize_rows(states)
        sums = torch._int_mm(rows, self.get_buffer("codes")).float()
        out = sums * self.get_buffer("scales") * scales
        return (out if self.bias is None else out + self.bias).to(states.dtype)


class Int4Linear(nn.Module):
    """int4 weights in groups, multiplied in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        padded = nn.functional.pad(weight, (0, -weight.shape[-1] % GROUP, 0, -weight.shape[0] % GROUP))
        codes, scales = quantize_groups(padded)
        # The operation subtracts 8 from codes 0..15, then multiplies by the scale and adds the zero.
        grid = torch.stack((scales.t(), torch.zeros_like(scales.t())), dim=-1).bfloat16().contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1)
        self.register_buffer("packed", packed)
        self.register_buffer("grid", grid)
        self.outputs, self.inputs = weight.shape
        self.bias: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        """(rows, inputs) -> (rows, outputs), dtype kept."""
        rows = nn.functional.pad(states.bfloat16(), (0, -self.inputs % GROUP)).contiguous()
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.get_buffer("packed"), GROUP, self.get_buffer("grid")
        )[:, : self.outputs]
        return (out if self.bias is None else out + self.bias).to(states.dtype)


METHODS: dict[str, LinearMethod] = {"int8": Int8Linear, "int4": Int4Linear}
