"""A plan as arrays: which token goes where."""

from __future__ import annotations

import numpy as np

from penstock.engine.batch import build_batch
from penstock.engine.plan import Chunk, StepPlan
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence


def sequence(identity: int, tokens: list[int], blocks: list[int]) -> Sequence:
    """A sequence with its block table."""
    return Sequence(identity, tokens, SamplingParams(max_tokens=1), block_table=blocks)


def test_a_mixed_step_becomes_one_flat_row() -> None:
    """A decode, the middle of a prompt and a whole prompt, blocks of 4."""
    decode = sequence(1, [10, 11, 12, 13, 14, 15], [7, 2])
    middle = sequence(2, list(range(20, 30)), [6, 5, 1])
    whole = sequence(3, [40, 41], [3])
    batch = build_batch(StepPlan((Chunk(decode, 5, 1), Chunk(middle, 3, 4), Chunk(whole, 0, 2))), 4)
    assert batch.tokens.tolist() == [15, 23, 24, 25, 26, 40, 41]
    assert batch.positions.tolist() == [5, 3, 4, 5, 6, 0, 1]
    assert batch.query_starts.tolist() == [0, 1, 5, 7]
    assert batch.block_tables.tolist() == [[7, 2], [6, 5], [3, 0]]
    assert batch.logit_rows.tolist() == [0, 6]
    assert [batch.context_slots(index, 4).tolist() for index in range(3)] == [
        [28, 29, 30, 31, 8, 9],
        [24, 25, 26, 27, 20, 21, 22],
        [12, 13],
    ]


def test_spare_blocks_are_not_read() -> None:
    """A table may hold more than the step reaches: the rest is someone's old keys."""
    batch = build_batch(StepPlan((Chunk(sequence(1, [1, 2, 3], [4, 6]), 0, 2),)), 2)
    assert batch.block_tables.tolist() == [[4]]
    assert batch.context_slots(0, 2).tolist() == [8, 9]
    assert batch.logit_rows.tolist() == []


def test_the_plan_is_left_as_it_is() -> None:
    """The scheduler commits it afterwards."""
    one = sequence(1, [1, 2, 3], [4, 6])
    build_batch(StepPlan((Chunk(one, 0, 3),)), 2)
    assert (one.tokens, one.block_table, one.num_computed) == ([1, 2, 3], [4, 6], 0)


def test_every_array_is_int32() -> None:
    """What the kernels take without a conversion."""
    batch = build_batch(StepPlan((Chunk(sequence(1, [1, 2], [0]), 0, 2),)), 2)
    arrays = (batch.tokens, batch.positions, batch.query_starts, batch.block_tables, batch.logit_rows)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
