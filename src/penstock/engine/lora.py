"""LoRA adapters (Hu et al. 2021) as peft writes them, read into the shapes of our decoder.

peft keeps A and B of q, k, v, gate and up apart; the decoder fuses their products. So do the adapters here:
the A lie one below the other, B is block-diagonal, and the scale is in B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from penstock.base.errors import CheckpointError
from penstock.engine.batch import Batch
from penstock.engine.lora_config import Part, read_parts
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import parameter_shapes, part_table
from penstock.protocol.strict import shown

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of every tensor's name
_UNSUPPORTED = ("model.embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one product: y += B (A x)."""

    a: Tensor
    """float32 (rank, inputs)."""
    b: Tensor
    """float32 (outputs, rank), the scale in it."""


Product = tuple[int, str]
"""One product of the decoder: the layer's number, and the projection's name."""
LoraWeights = Mapping[Product, LowRank]
"""What an adapter adds; products that are not there stay as they are."""


class Adaptation:
    """Adds to products what the adapters of a batch's rows make of their inputs, on PyTorch's operations."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        rows: dict[int, list[Tensor]] = {}
        weights: dict[int, LoraWeights] = {}
        for adapter, start, end in zip(
            batch.adapters, batch.query_starts[:-1].tolist(), batch.query_starts[1:].tolist(), strict=True
        ):
            if adapter is not None:
                rows.setdefault(adapter.number, []).append(torch.arange(start, end))
                weights[adapter.number] = adapter.weights
        self._groups = [(torch.cat(parts).to(device), weights[number]) for number, parts in rows.items()]

    def __call__(self, layer: int, projection: str, inputs: Tensor, outputs: Tensor) -> Tensor:
        """See `Adapt`."""
        for rows, weights in self._groups:
            added = weights.get((layer, projection))
            if added is not None:
                change = inputs[rows].float() @ added.a.T @ added.b.T
                outputs.index_add_(0, rows, change.to(outputs.dtype))
        return outputs


def read_lora(directory: Path, spec: DecoderSpec, max_rank: int) -> LoraWeights:
    """Reads the adapter in a folder, made for a model of `spec`.

    Raises:
        CheckpointError: missing or broken files, another model's shapes, a rank above `max_rank`, or what the
            engine does not have.
    """
    homes = {
        name.removesuffix(".weight"): part
        for name, part in part_table(spec).items()
        if name.endswith("_proj.weight")
    }
    parts = read_parts(directory, (*homes, *_UNSUPPORTED))
    for name, part in parts.items():
        if name in _UNSUPPORTED:
            raise CheckpointError(f"{directory}: an adapter for {name} is not supported")
        if part.rank > max_rank:
            raise CheckpointError(f"{directory}: {name} has rank {part.rank}; max_lora_rank is {max_rank}")
    shapes = parameter_shapes(spec)
    # In the order of the decoder's rows, which is also that of the ranks of a fused product.
    fused: dict[str, list[str]] = {}
    for name in sorted(parts, key=lambda name: homes[name].start):
        fused.setdefault(homes[name].name, []).append(name)
    weights: dict[Product, LowRank] = {}
    with _Tensors(directory / WEIGHTS, parts) as tensors:
        for parameter, names in fused.items():
            outputs, inputs = shapes[parameter]
            rank = sum(parts[name].rank for name in names)
            a, b = torch.empty(rank, inputs), torch.zeros(outputs, rank)
            first = 0
            for name in names:
                home, part = homes[name], parts[name]
                end, rows = first + part.rank, home.rows or outputs
                a[first:end] = tensors.read(name, "A", (part.rank, inputs))
                b[home.start : home.start + rows, first:end] = part.scale * tensors.read(
                    name, "B", (rows, part.rank)
                )
                first = end
            if not b.isfinite().all():
                raise CheckpointError(f"{directory}: {names[0]}: B times the scale is not finite")
            _, layer, _, projection, _ = parameter.split(".")
            weights[int(layer), projection] = LowRank(a, b)
    return weights


class _Tensors:
    """The tensors of an adapter's file, which must be those that its config implies."""

    def __init__(self, path: Path, parts: Mapping[str, Part]) -> None:
        self._path = path
        self._parts = parts
        self._file: Any

    def __enter__(self) -> _Tensors:
        try:
            if not self._path.is_file():
                raise CheckpointError(
                    f"{self._path.parent} lacks {self._path.name} (only safetensors adapters are supported)"
                )
            self._file = safe_open(self._path, framework="pt")
            names = set(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise self._broken(error) from error
        wanted = {self._name(module, factor) for module in self._parts for factor in "AB"}
        if missing := wanted - names:
            raise CheckpointError(
                f"{self._path} lacks {len(missing)} of {len(wanted)} tensors, among them {min(missing)}"
            )
        if extra := names - wanted:
            raise CheckpointError(
                f"{self._path} holds a tensor that its config does not imply: {shown(min(extra))!r}"
            )
        return self

    def __exit__(self, *_: object) -> None:
        del self._file

    def read(self, module: str, factor: str, shape: tuple[int, int]) -> Tensor:
        """One factor in float32, its shape checked before it is read."""
        name = self._name(module, factor)
        try:
            found = tuple(self._file.get_slice(name).get_shape())
            if found != shape:
                raise CheckpointError(
                    f"{self._path}: {name} has shape {found}, config and base model imply {shape}"
                )
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self._broken(error) from error
        values = tensor.float()
        if not tensor.is_floating_point() or not values.isfinite().all():
            raise CheckpointError(f"{self._path}: {name} holds values that are no finite numbers")
        return values

    @staticmethod
    def _name(module: str, factor: str) -> str:
        return f"{_PREFIX}{module}.lora_{factor}.weight"

    def _broken(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self._path} cannot be read: {error}")
