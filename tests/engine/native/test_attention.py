"""The attention kernel against PyTorch's, at page borders, for every head size and group it will meet."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from native_kernels import find_kernels, needs_kernels

pytestmark = needs_kernels
Floats = NDArray[np.float32]
# Around pages of 16 and spans of 256.
LENGTHS = (1, 15, 16, 17, 31, 255, 256, 257, 600)
TOLERANCE = {"float32": 2e-6, "bfloat16": 0.02, "int8": 0.04}


@dataclass(frozen=True)
class Case:
    """Some sequences in one cache."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    kv_format: str = "float32"
    window: int = 0
    lengths: tuple[int, ...] = LENGTHS

    def states(self) -> list[tuple[Floats, Floats, Floats]]:
        """Query, key and value of every sequence."""
        rng = np.random.default_rng(7)
        return [
            tuple(
                rng.standard_normal((n, h, self.head_dim), np.float32)
                for h in (self.heads, *[self.kv_heads] * 2)
            )
            for n in self.lengths
        ]

    def tables(self) -> tuple[int, NDArray[np.int32]]:
        """Number of blocks, and for each sequence its own, scattered."""
        counts = [-(-n // self.block_size) for n in self.lengths]
        blocks = np.random.default_rng(8).permutation(sum(counts)).astype(np.int32)
        tables = np.zeros((len(counts), max(counts)), np.int32)
        for row, (end, count) in enumerate(zip(itertools.accumulate(counts), counts, strict=True)):
            tables[row, :count] = blocks[end - count : end]
        return sum(counts), tables


def attend(case: Case, chunk: int = 0, threads: int = 2) -> list[Floats]:
    """The kernel's results, all sequences side by side in chunks of `chunk`; 0: whole."""
    kernels, states = find_kernels(), case.states()
    num_blocks, tables = case.tables()
    cache = kernels.KVCache(case.kv_format, 2, num_blocks, case.block_size, case.kv_heads, case.head_dim)
    pool: Any = kernels.Pool(threads)
    outs: list[list[Floats]] = [[] for _ in states]
    for start in range(0, max(case.lengths), chunk or max(case.lengths)):
        rows = [i for i, n in enumerate(case.lengths) if n > start]
        ends = [min(case.lengths[i], start + (chunk or case.lengths[i])) for i in rows]
        parts = [
            np.concatenate([states[i][k][start:end] for i, end in zip(rows, ends, strict=True)])
            for k in range(3)
        ]
        positions = np.concatenate([np.arange(start, end, dtype=np.int32) for end in ends])
        starts = np.cumsum([0, *(end - start for end in ends)], dtype=np.int32)
        out = cache.attend(pool, 1, case.window, *parts, positions, starts, tables[rows])
        for place, i in enumerate(rows):
            outs[i].append(out[starts[place] : starts[place + 1]])
    return [np.concatenate(parts) for parts in outs]


def oracle(case: Case) -> list[Floats]:
    """PyTorch's attention with a mask, sequence by sequence."""
    group, results = case.heads // case.kv_heads, []
    for states in case.states():
        query, key, value = (torch.from_numpy(part).transpose(0, 1) for part in states)
        distance = torch.arange(len(states[0]))[:, None] - torch.arange(len(states[0]))[None, :]
        seen = (distance >= 0) & (distance < (case.window or len(distance) + 1))
        key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        results.append(out.transpose(0, 1).flatten(1).numpy())
    return results


def assert_close(case: Case) -> None:
    """The kernel equals the oracle."""
    for ours, exact in zip(attend(case), oracle(case), strict=True):
        np.testing.assert_allclose(ours, exact, atol=TOLERANCE[case.kv_format])


@pytest.mark.parametrize("group", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("head_dim", [12, 64, 80, 96, 128])
def test_every_head_size_and_group(head_dim: int, group: int) -> None:
    """Two key-value heads, so that a head that reads its neighbour's keys is seen."""
    assert_close(Case(heads=2 * group, kv_heads=2, head_dim=head_dim))


@pytest.mark.parametrize("kv_format", TOLERANCE)
@pytest.mark.parametrize("block_size", [16, 32, 48, 256, 512])
def test_every_format_and_block_size(block_size: int, kv_format: str) -> None:
    """Pages shorter and longer than a span, and one that does not divide it."""
    assert_close(Case(heads=14, block_size=block_size, kv_format=kv_format))


@pytest.mark.parametrize("window", [1, 2, 37, 256, 300, 10_000])
def test_a_window_hides_what_is_older(window: int) -> None:
    """Within a page, across pages and spans, and longer than the context."""
    assert_close(Case(window=window))


@pytest.mark.parametrize("kv_format", TOLERANCE)
@pytest.mark.parametrize("window", [0, 37, 300])
def test_chunks_and_threads_do_not_change_a_bit(window: int, kv_format: str) -> None:
    """Decoding, chunks of any size and the whole prompt are the same sums in the same order."""
    case = Case(heads=14, window=window, kv_format=kv_format)
    whole = attend(case, threads=1)
    for chunk, threads in ((1, 1), (1, 3), (7, 2), (64, 2), (0, 3)):
        for ours, exact in zip(attend(case, chunk, threads), whole, strict=True):
            assert (ours == exact).all()


def test_a_context_of_eight_thousand() -> None:
    """The last queries of a long context, decoded and in a chunk."""
    case = Case(lengths=(8192,), heads=7, kv_heads=1)
    kernels, (query, key, value) = find_kernels(), case.states()[0]
    num_blocks, tables = case.tables()
    cache = kernels.KVCache("float32", 2, num_blocks, 16, 1, 64)
    positions = np.arange(8192, dtype=np.int32)
    pool = kernels.Pool(2)

    def last(count: int) -> Floats:
        part = slice(8192 - count, None)
        starts = np.asarray([0, count], np.int32)
        return cache.attend(pool, 0, 0, query[part], key[part], value[part], positions[part], starts, tables)

    cache.attend(pool, 0, 0, query, key, value, positions, np.asarray([0, 8192], np.int32), tables)
    chunk = last(30)
    assert (last(1)[0] == chunk[-1]).all()
    weights = torch.einsum("qhd,kd->hqk", torch.from_numpy(query[-30:]), torch.from_numpy(key[:, 0])) / 8
    distance = torch.arange(8192)[None, :] - torch.arange(8162, 8192)[:, None]
    weights = weights.masked_fill(distance > 0, float("-inf")).softmax(-1)
    exact = torch.einsum("hqk,kd->qhd", weights, torch.from_numpy(value[:, 0])).flatten(1).numpy()
    np.testing.assert_allclose(chunk, exact, atol=2e-6)


def test_what_does_not_fit_is_refused() -> None:
    """A defect of the caller ends in an exception, not in foreign memory."""
    kernels = find_kernels()
    with pytest.raises(ValueError, match="multiple of 16"):
        kernels.KVCache("float32", 1, 4, 8, 1, 16)
    with pytest.raises(ValueError, match="unknown KV cache format"):
        kernels.KVCache("float64", 1, 4, 16, 1, 16)
    for shape in ((0, 4, 16, 1, 16), (1, 4, 0, 1, 16), (1, -4, 16, 1, 16)):
        with pytest.raises(ValueError, match="at least one of everything"):
            kernels.KVCache("float32", *shape)
    cache, pool = kernels.KVCache("float32", 1, 4, 16, 1, 16), kernels.Pool(1)
    states = [np.zeros((2, 1, 16), np.float32)] * 3

    def call(positions: list[int], starts: list[int], table: list[int]) -> None:
        arrays = [np.asarray(values, np.int32) for values in (positions, starts)]
        cache.attend(pool, 0, 0, *states, *arrays, np.asarray([table] * (len(starts) - 1), np.int32))

    call([15, 16], [0, 2], [3, 0])
    for positions, starts, table, message in (
        ([15, 16], [0, 2], [3], "too short"),
        ([0, 1], [0, 2], [4], "no such block"),
        ([0, 1], [0, 2], [-1], "no such block"),
        ([0, 2], [0, 2], [0], "follow each other"),
        ([-1, 0], [0, 2], [0], "follow each other"),
        ([0, 1], [0, 1], [0], "query_starts"),
        ([0, 1], [0, 0], [0], "query_starts"),
        ([0, 1], [0, 1 << 30, 2], [0], "at least one token"),
    ):
        with pytest.raises(ValueError, match=message):
            call(positions, starts, table)
    starts, table = np.asarray([0, 2], np.int32), np.zeros((1, 1), np.int32)
    positions = np.asarray([0, 1], np.int32)
    with pytest.raises(ValueError, match="query_starts has the wrong shape"):
        cache.attend(pool, 0, 0, *states, positions, np.zeros((3, 0), np.int32), np.zeros((2, 1), np.int32))
    with pytest.raises(ValueError, match="query has the wrong shape"):
        cache.attend(pool, 0, 0, np.zeros((2, 0, 16), np.float32), *states[1:], positions, starts, table)
    with pytest.raises(ValueError, match="number of positions"):
        cache.attend(pool, 0, -1, *states, positions, starts, table)


@pytest.mark.parametrize("kv_format", TOLERANCE)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_key_that_is_no_number_reaches_every_later_query(kv_format: str, bad: float) -> None:
    """Or an answer over a broken context would look like one; int8 finds a scale over the other values."""
    kernels, case = find_kernels(), Case(lengths=(40,))
    (query, key, value), (num_blocks, tables) = case.states()[0], case.tables()
    cache = kernels.KVCache(kv_format, 1, num_blocks, 16, 2, 64)
    query, key = np.abs(query), key.copy()
    key[20, :, 3] = bad
    arrays = (np.arange(40, dtype=np.int32), np.asarray([0, 40], np.int32), tables)
    out = cache.attend(kernels.Pool(2), 0, 0, query, key, value, *arrays)
    assert np.isfinite(out[:20]).all()
    assert not np.isfinite(out[20:]).any()
