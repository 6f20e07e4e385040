"""Muon for the weight matrices, AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces each matrix's momentum by
the nearest semi-orthogonal matrix, found by a few Newton-Schulz iterations. The update is scaled to the
root mean square of AdamW's (Liu et al. 2025, arXiv:2502.16982), so both share one learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from penstock.engine.decoder import Decoder

_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


@torch.no_grad()
def orthogonalise(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> the same shape, each matrix with singular values near 1; computed in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    wide = matrices.shape[1] <= matrices.shape[2]
    states = (matrices if wide else matrices.mT).bfloat16()
    states = states / (states.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = states @ states.mT
        states = a * states + (b * gram + c * gram @ gram) @ states
    result: Tensor = states if wide else states.mT
    return result.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over matrices. A fused matrix is given with the row counts of its parts, updated one by one.

    Args:
        matrices: (parameter, rows of its parts); the rows sum to the parameter's first dimension.
        lr: learning rate, per step.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(
        self, matrices: Sequence[tuple[nn.Parameter, tuple[int, ...]]], lr: float, weight_decay: float
    ) -> None:
        super().__init__([parameter for parameter, _ in matrices], {"lr": lr, "weight_decay": weight_decay})
        self._parts = [rows for _, rows in matrices]
        self._momenta = [torch.zeros_like(parameter) for parameter, _ in matrices]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients; parts of equal shape are orthogonalised together."""
        del closure
        group = self.param_groups[0]
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parameter, momentum, rows in zip(group["params"], self._momenta, self._parts, strict=True):
            if parameter.grad is None:
                continue
            momentum.mul_(_MOMENTUM).add_(parameter.grad)
            update = parameter.grad.add(momentum, alpha=_MOMENTUM)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            for target, part in zip(parameter.split(rows), update.split(rows), strict=True):
                by_shape.setdefault(tuple(part.shape), []).append((target, part))
        for shape, pairs in by_shape.items():
            updates = orthogonalise(torch.stack([part for _, part in pairs]))
            scale = 0.2 * max(shape) ** 0.5
            for (target, _), update in zip(pairs, updates, strict=True):
                target.add_(update, alpha=-group["lr"] * scale)


def build_optimizers(decoder: Decoder, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the projections, with q, k, v and gate, up apart; AdamW for embedding and norms."""
    spec = decoder.spec
    heads, kv_heads = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    parts = {
        "qkv_proj": (heads, kv_heads, kv_heads),
        "gate_up_proj": (spec.intermediate_size, spec.intermediate_size),
    }
    matrices: list[tuple[tuple[nn.Parameter, tuple[int, ...]], str]] = []
    others: list[nn.Parameter] = []
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 2 and name.startswith("layers."):
            module = name.split(".")[-2]
            matrices.append(((parameter, parts.get(module, (parameter.shape[0],))), name))
        else:
            others.append(parameter)
    adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    # Two of them, so that two threads can share the work.
    attention = [entry for entry, name in matrices if "attention" in name]
    mlp = [entry for entry, name in matrices if "attention" not in name]
    return [Muon(mlp, lr, weight_decay), Muon(attention, lr, weight_decay), adamw]
