"""A step plan as arrays: one flat row of tokens, no padding. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.engine.adapter import Adapter
from penstock.engine.plan import StepPlan

Int32s = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one forward pass, arrays of int32. T tokens, S sequences, in the plan's order."""

    tokens: Int32s
    """(T,)"""
    positions: Int32s
    """(T,): place of each token in its own sequence, from 0; consecutive within a sequence."""
    query_starts: Int32s
    """(S + 1,) offsets into the flat row: sequence s owns rows [query_starts[s], query_starts[s + 1])."""
    block_tables: Int32s
    """(S, width): the blocks of each sequence's context up to this step's last position, then zeros."""
    logit_rows: Int32s
    """(num_draws,): rows whose hidden state gives a new token."""
    adapters: tuple[Adapter | None, ...]
    """S: what each sequence is computed with beside the model."""

    def context_slots(self, sequence: int, block_size: int) -> NDArray[np.int64]:
        """(context,): where the keys and values of all positions of a sequence lie, block * size + offset."""
        positions = np.arange(self.positions[self.query_starts[sequence + 1] - 1] + 1, dtype=np.int64)
        blocks = self.block_tables[sequence].astype(np.int64)
        slots: NDArray[np.int64] = blocks[positions // block_size] * block_size + positions % block_size
        return slots


def build_batch(plan: StepPlan, block_size: int) -> Batch:
    """Turns a plan with at least one chunk into arrays; the plan is left as it is."""
    chunks = plan.chunks
    counts = [chunk.end - chunk.start for chunk in chunks]
    widths = [-(-chunk.end // block_size) for chunk in chunks]
    query_starts = np.zeros(len(chunks) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_starts[1:])
    block_tables = np.zeros((len(chunks), max(widths)), dtype=np.int32)
    tokens: list[int] = []
    for row, (chunk, width) in enumerate(zip(chunks, widths, strict=True)):
        block_tables[row, :width] = chunk.sequence.block_table[:width]
        tokens += chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
        tokens += chunk.draft
    starts = np.asarray([chunk.start for chunk in chunks], dtype=np.int32)
    within = np.arange(len(tokens), dtype=np.int32) - np.repeat(query_starts[:-1], counts)
    draws = [
        row
        for chunk, end in zip(chunks, query_starts[1:].tolist(), strict=True)
        for row in range(end - chunk.num_draws, end)
    ]
    return Batch(
        tokens=np.asarray(tokens, dtype=np.int32),
        positions=np.repeat(starts, counts) + within,
        query_starts=query_starts,
        block_tables=block_tables,
        logit_rows=np.asarray(draws, dtype=np.int32),
        adapters=tuple(chunk.sequence.adapter for chunk in chunks),
    )
