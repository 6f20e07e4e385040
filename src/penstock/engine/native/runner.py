"""A model on the CPU kernels: packs the weights as they are read, then runs whole steps in C++."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from penstock.base.errors import CheckpointError
from penstock.engine.batch import Batch, build_batch
from penstock.engine.formats import LANES, head_format, lookup_format
from penstock.engine.kv_pages import NativePages
from penstock.engine.lora import LoraWeights
from penstock.engine.memory import MemoryPlan
from penstock.engine.plan import StepPlan
from penstock.engine.spec import DecoderSpec

# Weights converted to float32 at a time: 16 MiB.
PACK_ELEMENTS = 1 << 22
# What the kernels call a layer's products.
FIELDS = {"qkv_proj": "qkv", "o_proj": "output", "gate_up_proj": "gate_up", "down_proj": "down"}


class NativeRunner:
    """Decoder and KV cache in C++; used by one thread.

    A sequence's tokens do not depend on what is computed with it, nor on how its prompt is cut into chunks:
    every kernel computes a row from that row alone, in an order that is always the same.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: Iterable[tuple[str, Tensor]],
        memory: MemoryPlan,
        threads: int,
    ) -> None:
        """`tensors`: every parameter of the decoder by its name, once, in any order."""
        self.spec = spec
        self.memory = memory
        kernels = memory.compute.kernels
        cache = kernels.KVCache(
            memory.compute.kv_format,
            spec.num_layers,
            memory.num_blocks,
            memory.block_size,
            spec.num_kv_heads,
            spec.head_dim,
        )
        self.pages = NativePages(cache)
        parts = _Parts(spec, memory.compute.weight_format, kernels, threads)
        for name, tensor in tensors:
            parts.add(name, tensor)
        kernels.give_memory_back()
        self._decoder = kernels.Decoder(
            shape=_shape(spec, kernels),
            layers=parts.layers,
            embedding=parts.embedding,
            norm=parts.norm,
            head=parts.head,
            cache=cache,
            threads=threads,
        )
        self._logits: NDArray[np.float32] = np.empty((0, spec.vocab_size), dtype=np.float32)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return int(self._decoder.weight_bytes)

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass. The logits are overwritten by the next step."""
        return self.compute(build_batch(plan, self.memory.block_size))

    def compute(self, batch: Batch) -> Tensor:
        """float32 logits (len(batch.logit_rows), vocab_size), overwritten by the next call."""
        rows = len(batch.logit_rows)
        if rows > len(self._logits):
            self._logits = np.empty((rows, self.spec.vocab_size), dtype=np.float32)
        logits = self._logits[:rows]
        self._decoder.step(
            batch.tokens,
            batch.positions,
            batch.query_starts,
            batch.block_tables,
            batch.logit_rows,
            logits,
            [None if adapter is None else adapter.weights for adapter in batch.adapters],
        )
        return torch.from_numpy(logits)

    def adapt(self, weights: LoraWeights) -> Any:
        """An adapter's weights as the kernels compute with them; may be called from any thread."""
        kernels = self.memory.compute.kernels
        layers = [kernels.AdapterLayer() for _ in range(self.spec.num_layers)]
        for (layer, projection), one in weights.items():
            b = interleave_gates(one.b) if projection == "gate_up_proj" else one.b
            setattr(layers[layer], FIELDS[projection], kernels.LowRank(one.a.numpy(), b.contiguous().numpy()))
        return kernels.Adapter(layers)

    def logits(self, start: int, end: int) -> Tensor:
        """See StepView."""
        rows = np.arange(start, end, dtype=np.int32)
        logits = np.empty((len(rows), self.spec.vocab_size), dtype=np.float32)
        self._decoder.logits(rows, logits)
        return torch.from_numpy(logits)

    def states(self, start: int, end: int) -> Tensor:
        """See StepView."""
        rows = np.arange(start, end, dtype=np.int32)
        states = np.empty((len(rows), self.spec.hidden_size), dtype=np.float32)
        self._decoder.states(rows, states)
        return torch.from_numpy(states)


class _Parts:
    """Collects parameters by name into what the C++ decoder is made of."""

    def __init__(self, spec: DecoderSpec, weight_format: str, kernels: Any, threads: int) -> None:
        self.spec = spec
        self.format = weight_format
        self.kernels = kernels
        self.pool = kernels.Pool(threads)
        self.layers = [kernels.Layer() for _ in range(spec.num_layers)]
        for layer, window in zip(self.layers, spec.windows, strict=True):
            layer.window = window or 0
        self.norm: list[float] = []
        self.head = self._weight(head_format(weight_format), spec.vocab_size, spec.hidden_size)
        self.embedding = (
            self.head
            if spec.tied_head
            else self._weight(lookup_format(weight_format), spec.vocab_size, spec.hidden_size)
        )
        for layer in self.layers:
            out = spec.num_heads * spec.head_dim
            width = out + 2 * spec.num_kv_heads * spec.head_dim
            gates = -(-spec.intermediate_size // LANES) * LANES
            layer.qkv = self._weight(weight_format, width, spec.hidden_size)
            layer.output = self._weight(weight_format, spec.hidden_size, out)
            layer.gate_up = self._weight(weight_format, 2 * gates, spec.hidden_size)
            layer.down = self._weight(weight_format, spec.hidden_size, spec.intermediate_size)

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes one parameter of the decoder."""
        if name in ("embedding.weight", "head.weight"):
            pack(self.embedding if name == "embedding.weight" else self.head, self.pool, tensor)
            return
        if name == "norm.weight":
            self.norm = tensor.float().tolist()
            return
        _, index, module, *rest = name.split(".")
        layer, kind = self.layers[int(index)], rest[-1]
        if module.endswith("_norm") or rest[0].endswith("_norm"):
            setattr(layer, rest[0] if rest[0].endswith("_norm") else module, tensor.float().tolist())
            return
        field = FIELDS[rest[0]]
        weight = getattr(layer, field)
        if field == "gate_up":
            tensor = interleave_gates(tensor)
        if kind == "bias":
            weight.set_bias(tensor.float().numpy())
        else:
            pack(weight, self.pool, tensor)

    def _weight(self, weight_format: str, outputs: int, inputs: int) -> Any:
        return self.kernels.Weight(weight_format, outputs, inputs)


def interleave_gates(tensor: Tensor) -> Tensor:
    """Gates then values, (2 n, ...) -> 16 gates, the 16 values they gate, the next 16, ...; n padded."""
    inputs = tensor.shape[1:]  # none of a bias
    halves = tensor.reshape(2, -1, *inputs)
    if padding := -halves.shape[1] % LANES:
        halves = F.pad(halves, (*[0, 0] * len(inputs), 0, padding))
    return halves.reshape(2, -1, LANES, *inputs).transpose(0, 1).reshape(-1, *inputs)


def pack(weight: Any, pool: Any, tensor: Tensor) -> None:
    """Quantises and packs a whole weight. Raises CheckpointError for values that are no numbers."""
    try:
        for start, rows in _float_rows(tensor):
            weight.pack(pool, start, rows)
    except ValueError as error:
        raise CheckpointError(f"the weights cannot be packed: {error}") from error


def _float_rows(tensor: Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = max(1, PACK_ELEMENTS // tensor.shape[1])
    for start in range(0, len(tensor), step):
        yield start, tensor[start : start + step].float().contiguous().numpy()


def _shape(spec: DecoderSpec, kernels: Any) -> Any:
    return kernels.DecoderShape(
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        eps=spec.rms_norm_eps,
        frequencies=spec.rope.inverse_frequencies().tolist(),
        rotary_scale=spec.rope.attention_factor,
    )
