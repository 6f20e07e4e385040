"""A plan as tensors: which token goes where."""

from __future__ import annotations

import torch

from penstock.engine.batch import build_batch
from penstock.engine.scheduler import Chunk, StepPlan
from penstock.engine.sequence import SamplingParams, Sequence

CPU = torch.device("cpu")


def sequence(identity: int, tokens: list[int], blocks: list[int]) -> Sequence:
    """A sequence with its block table."""
    return Sequence(identity, tokens, SamplingParams(max_tokens=1), block_table=blocks)


def test_a_mixed_step_becomes_one_flat_row() -> None:
    """A decode, the middle of a prompt and a whole prompt, blocks of 4."""
    decode = sequence(1, [10, 11, 12, 13, 14, 15], [7, 2])
    middle = sequence(2, list(range(20, 30)), [0, 5, 1])
    whole = sequence(3, [40, 41], [3])
    batch = build_batch(StepPlan((Chunk(decode, 5, 1), Chunk(middle, 3, 4), Chunk(whole, 0, 2))), 4, CPU)
    assert batch.tokens.tolist() == [15, 23, 24, 25, 26, 40, 41]
    assert batch.positions.tolist() == [5, 3, 4, 5, 6, 0, 1]
    assert batch.slots.tolist() == [9, 3, 20, 21, 22, 12, 13]
    assert batch.query_starts == (0, 1, 5, 7)
    assert [slots.tolist() for slots in batch.context_slots] == [
        [28, 29, 30, 31, 8, 9],
        [0, 1, 2, 3, 20, 21, 22],
        [12, 13],
    ]
    assert batch.logit_rows.tolist() == [0, 6]


def test_spare_blocks_are_not_read() -> None:
    """A table may hold more than the step reaches: the rest is someone's old keys."""
    batch = build_batch(StepPlan((Chunk(sequence(1, [1, 2, 3], [4, 6]), 0, 2),)), 2, CPU)
    assert batch.context_slots[0].tolist() == [8, 9]
    assert batch.logit_rows.tolist() == []


def test_the_plan_is_left_as_it_is() -> None:
    """The scheduler commits it afterwards."""
    one = sequence(1, [1, 2, 3], [4, 6])
    build_batch(StepPlan((Chunk(one, 0, 3),)), 2, CPU)
    assert (one.tokens, one.block_table, one.num_computed) == ([1, 2, 3], [4, 6], 0)


def test_every_index_tensor_is_int64() -> None:
    """What torch's index operations take without a conversion."""
    batch = build_batch(StepPlan((Chunk(sequence(1, [1, 2], [0]), 0, 2),)), 2, CPU)
    tensors = (batch.tokens, batch.positions, batch.slots, batch.logit_rows, *batch.context_slots)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
