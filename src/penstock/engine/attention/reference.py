"""Paged attention, plainly: the oracle for every faster backend, and the one that runs everywhere.

Per sequence it gathers keys and values of the context and computes softmax(q k / sqrt(d)) v in float32, some
queries at a time, so that the scores of a long context stay within a bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.engine.attention.contract import Attend
from penstock.engine.batch import Batch
from penstock.engine.spec import DecoderSpec

# Scores computed at a time: 64 MiB of float32, and as much again for their softmax.
MAX_SCORES = 1 << 24


class ReferenceAttention:
    """KV cache and attention in plain PyTorch, on any device and dtype."""

    def __init__(
        self, spec: DecoderSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec = spec
        self.block_size = block_size
        self.scale = spec.head_dim**-0.5
        shape = (spec.num_layers, num_blocks * block_size, spec.num_kv_heads, spec.head_dim)
        # Not filled: only written slots are ever read, and untouched memory costs nothing until it is used.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def bind(self, batch: Batch) -> Attend:
        """See the contract."""
        device = self.keys.device
        count = len(batch.block_tables)
        contexts = [batch.context_slots(index, self.block_size) for index in range(count)]
        slots = [torch.from_numpy(context).to(device) for context in contexts]
        starts = batch.query_starts.tolist()
        written = torch.cat([slots[i][starts[i] - starts[i + 1] :] for i in range(count)])
        positions = torch.from_numpy(batch.positions).to(device)
        visible = [self._masks(positions[starts[i] : starts[i + 1]], len(slots[i])) for i in range(count)]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.keys[layer].index_copy_(0, written, key.to(self.keys.dtype))
            self.values[layer].index_copy_(0, written, value.to(self.keys.dtype))
            window = self.spec.windows[layer]
            out = torch.empty_like(query)
            for index in range(count):
                start, end = starts[index], starts[index + 1]
                out[start:end] = self._attend_one(
                    query[start:end],
                    self.keys[layer].index_select(0, slots[index]),
                    self.values[layer].index_select(0, slots[index]),
                    visible[index][window],
                )
            return out.flatten(1)

        return attend

    def _masks(self, positions: Tensor, length: int) -> dict[int | None, Tensor]:
        """For each window the model uses: bool (count, length), True where a query sees a position."""
        queries = positions[:, None]
        context = torch.arange(length, device=positions.device)[None, :]
        causal = context <= queries
        return {
            window: causal if window is None else causal & (context > queries - window)
            for window in set(self.spec.windows)
        }

    def _attend_one(self, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """query (count, heads, d), keys and values (context, kv_heads, d) -> (count, heads, d)."""
        count, heads, size = query.shape
        most = max(1, MAX_SCORES // (heads * keys.shape[0]))
        if count > most:
            parts = zip(torch.split(query, most), torch.split(visible, most), strict=True)
            return torch.cat([self._attend_one(part, keys, values, seen) for part, seen in parts])
        group = heads // self.spec.num_kv_heads
        grouped = query.float().view(count, self.spec.num_kv_heads, group, size)
        scores = torch.einsum("qhgd,khd->hgqk", grouped, keys.float()) * self.scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out = torch.einsum("hgqk,khd->qhgd", weights, values.float())
        return out.reshape(count, heads, size).to(query.dtype)
