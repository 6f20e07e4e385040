"""A block's bytes, read from one cache and written into another, are the same keys and values there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from native_kernels import find_kernels, needs_kernels
from penstock.engine.kv_pages import KVPages, NativePages, TorchPages

LAYERS, BLOCKS, SIZE, HEADS = 3, 5, 16, 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_pages(dtype: torch.dtype) -> None:
    """Keys and values of all layers, and nothing beside the block."""
    keys, values = (torch.randn(LAYERS, BLOCKS * SIZE, HEADS, 6).to(dtype) for _ in range(2))
    pages = TorchPages(keys, values, SIZE)
    assert pages.block_bytes == 2 * LAYERS * SIZE * HEADS * 6 * dtype.itemsize
    found = pages.read([3, 1])
    assert found.shape == (2, pages.block_bytes)
    before = keys.clone()
    pages.write(4, found[0].tobytes())
    for half in (keys, values):
        assert torch.equal(half[:, 4 * SIZE : 5 * SIZE], half[:, 3 * SIZE : 4 * SIZE])
    assert torch.equal(keys[:, : 4 * SIZE], before[:, : 4 * SIZE])
    assert np.array_equal(pages.read([4])[0], found[0])


def attend(cache: Any, tables: list[int], query: Any, key: Any, value: Any, start: int) -> Any:
    """One sequence's chunk from position `start` on, through layer 1."""
    positions = np.arange(start, start + len(query), dtype=np.int32)
    starts = np.array([0, len(query)], dtype=np.int32)
    pool = find_kernels().Pool(1)
    return cache.attend(pool, 1, 0, query, key, value, positions, starts, np.array([tables], dtype=np.int32))


@needs_kernels
@pytest.mark.parametrize("head_dim", [12, 64])
@pytest.mark.parametrize("kv_format", ["float32", "bfloat16", "int8"])
def test_native_pages_mean_the_same_in_another_cache(kv_format: str, head_dim: int) -> None:
    """Attention over copied blocks, elsewhere in another pool, gives the same bits."""
    kernels, rng = find_kernels(), np.random.default_rng(1)
    caches = [kernels.KVCache(kv_format, LAYERS, count, SIZE, HEADS, head_dim) for count in (BLOCKS, 9)]

    def draw(count: int, heads: int) -> Any:
        return rng.standard_normal((count, heads, head_dim), dtype=np.float32)

    attend(caches[0], [2, 0], draw(32, 4), draw(32, HEADS), draw(32, HEADS), 0)
    ours, theirs = (NativePages(cache) for cache in caches)
    for to, page in zip([7, 8], ours.read([2, 0]), strict=True):
        theirs.write(to, page.data)
    last = draw(1, 4), draw(1, HEADS), draw(1, HEADS)
    here, there = attend(caches[0], [2, 0, 1], *last, 32), attend(caches[1], [7, 8, 3], *last, 32)
    assert np.array_equal(here, there)
    assert not np.array_equal(there, attend(caches[1], [8, 7, 3], *last, 32))


@needs_kernels
def test_native_pages_refuse_what_does_not_fit() -> None:
    """Instead of writing beside the pool."""
    pages = NativePages(find_kernels().KVCache("float32", LAYERS, BLOCKS, SIZE, HEADS, 8))
    page = bytes(pages.block_bytes)
    refused: list[Callable[[], object]] = [
        lambda: pages.read([BLOCKS]),
        lambda: pages.read([-1]),
        lambda: pages.write(BLOCKS, page),
        lambda: pages.write(-1, page),
        lambda: pages.write(0, page[1:]),
    ]
    for attempt in refused:
        with pytest.raises(ValueError, match=r"no such block|wrong shape"):
            attempt()


def test_both_keep_the_contract() -> None:
    """As the type checker sees it."""
    kinds: list[type[KVPages]] = [TorchPages, NativePages]
    assert len({kind.layout for kind in kinds}) == 2
