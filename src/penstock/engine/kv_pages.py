"""The bytes of KV blocks: read out of a cache and written into one, as they lie there."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Page = bytes | memoryview


class KVPages(Protocol):
    """A KV cache as blocks of bytes. Used by the thread that steps the engine."""

    @property
    def layout(self) -> str:
        """How the bytes of a page lie, by name: pages of one layout mean nothing in another."""
        ...

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers together."""
        ...

    def read(self, blocks: SequenceOf[int]) -> NDArray[np.uint8]:
        """Copies of these blocks: uint8 (len(blocks), block_bytes)."""
        ...

    def write(self, block: int, page: Page) -> None:
        """Overwrites one block with `block_bytes` bytes that were read from a cache of the same layout."""
        ...


class TorchPages:
    """Pages of a cache in PyTorch's tensors: all layers' keys, then all layers' values."""

    layout = "torch-1"

    def __init__(self, keys: Tensor, values: Tensor, block_size: int) -> None:
        """keys, values: (num_layers, num_blocks * block_size, num_kv_heads, head_dim), contiguous."""
        num_layers, num_slots = keys.shape[:2]
        self._halves = [half.view(num_layers, num_slots // block_size, -1) for half in (keys, values)]
        self._layer_bytes = self._halves[0].shape[2] * keys.element_size()
        self.block_bytes = 2 * num_layers * self._layer_bytes

    def read(self, blocks: SequenceOf[int]) -> NDArray[np.uint8]:
        """See KVPages."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self._halves[0].device)
        parts = [half.index_select(1, index).transpose(0, 1).contiguous() for half in self._halves]
        raw = [part.view(torch.uint8).reshape(len(blocks), -1).cpu().numpy() for part in parts]
        return np.concatenate(raw, axis=1)

    def write(self, block: int, page: Page) -> None:
        """See KVPages."""
        raw = torch.from_numpy(np.frombuffer(page, dtype=np.uint8).copy())
        for half, part in zip(self._halves, raw.view(2, -1, self._layer_bytes), strict=True):
            half[:, block] = part.view(half.dtype).to(half.device)


class NativePages:
    """Pages of the kernels' cache, in their own layout."""

    layout = "native-1"

    def __init__(self, cache: Any) -> None:
        """`cache` is the kernels' KVCache."""
        self._cache = cache
        self.block_bytes = int(cache.block_bytes)

    def read(self, blocks: SequenceOf[int]) -> NDArray[np.uint8]:
        """See KVPages."""
        out = np.empty((len(blocks), self.block_bytes), dtype=np.uint8)
        self._cache.read_blocks(np.array(blocks, dtype=np.int32), out)
        return out

    def write(self, block: int, page: Page) -> None:
        """See KVPages."""
        self._cache.write_block(block, np.frombuffer(page, dtype=np.uint8))
