"""The scheduler's rules one by one. No torch needed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from penstock.base.errors import DeadlineExceededError, EngineError, KVCapacityError
from penstock.engine.blocks import BlockPool
from penstock.engine.plan import Limits, StepPlan
from penstock.engine.sampling import SamplingParams
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import FinishReason, Priority, Sequence, Status

END_TOKEN = 1


def sequence(identity: int, length: int, max_tokens: int = 8, **fields: Any) -> Sequence:
    """A prompt of `length` tokens that no other sequence has."""
    sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=frozenset({END_TOKEN}))
    return Sequence(identity, [1000 * (identity + 1) + i for i in range(length)], sampling, **fields)


def scheduler_with(limits: Limits, num_blocks: int, block_size: int, *sequences: Sequence) -> Scheduler:
    """A scheduler with these sequences waiting."""
    scheduler = Scheduler(limits, BlockPool(num_blocks, block_size))
    for one in sequences:
        scheduler.add(one)
    return scheduler


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    """(id, start, count) of each chunk."""
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in plan.chunks]


def step(scheduler: Scheduler, now: float = 0.0) -> StepPlan:
    """One step in which every sampling chunk gets token 0."""
    plan = scheduler.schedule(now)
    scheduler.commit(plan, [0] * len(plan.sampling_chunks))
    scheduler.check()
    return plan


def test_decodes_come_first_then_begun_prompts_then_new_ones() -> None:
    """A long prompt must not hold up the streams that are already running."""
    scheduler = scheduler_with(Limits(8, 10, 64), 64, 4, sequence(1, 3), sequence(2, 20), sequence(3, 4))
    assert shape(step(scheduler)) == [(1, 0, 3), (2, 0, 7)]
    assert shape(step(scheduler)) == [(1, 3, 1), (2, 7, 9)]
    assert shape(step(scheduler)) == [(1, 4, 1), (2, 16, 4), (3, 0, 4)]
    assert shape(step(scheduler)) == [(1, 5, 1), (2, 20, 1), (3, 4, 1)]


def test_new_sequences_are_admitted_in_order_of_arrival() -> None:
    """A short prompt does not overtake a long one that has no room yet: that would starve the long one."""
    scheduler = scheduler_with(
        Limits(8, 64, 64), 6, 4, sequence(1, 12), sequence(2, 16), sequence(3, 1, max_tokens=1)
    )
    assert shape(step(scheduler)) == [(1, 0, 12)]
    assert [one.id for one in scheduler.waiting] == [2, 3]


def test_no_more_sequences_run_than_the_limit() -> None:
    """Each decoding sequence needs a row in the step."""
    scheduler = scheduler_with(Limits(2, 64, 64), 64, 4, *(sequence(i, 2) for i in range(5)))
    assert len(step(scheduler).chunks) == 2
    assert len(scheduler.running) == 2


def test_the_newest_is_preempted_and_waits_in_its_old_place() -> None:
    """It loses its blocks and keeps its tokens; later arrivals do not overtake it."""
    scheduler = scheduler_with(Limits(2, 64, 64), 4, 4, sequence(1, 4), sequence(2, 3), sequence(3, 2))
    step(scheduler)  # both admitted, in blocks 1 + 1
    for _ in range(4):
        step(scheduler)
    newest = scheduler.running.last
    while newest.status is Status.RUNNING:
        step(scheduler)
    assert newest.id == 2
    assert scheduler.waiting.first is newest
    assert newest.block_table == []
    assert newest.num_computed == 0
    assert newest.num_generated > 0
    assert scheduler.num_preemptions == 1


@pytest.mark.parametrize("max_batch_tokens", [5, 12, 64])
def test_a_tight_pool_preempts_and_everything_still_ends_in_full(max_batch_tokens: int) -> None:
    """Twelve sequences of 20 tokens in a pool of 40, oldest first."""
    sequences = [sequence(identity, 4, max_tokens=16) for identity in range(12)]
    scheduler = scheduler_with(Limits(6, max_batch_tokens, 64), 10, 4, *sequences)
    steps, ended = 0, []
    while scheduler.has_work:
        step(scheduler)
        steps += 1
        ended += [one.id for one in sequences if one.status is Status.FINISHED and one.id not in ended]
        assert steps < 12 * 12 * 20
    assert scheduler.num_preemptions > 0
    assert [one.num_generated for one in sequences] == [16] * 12
    assert ended == sorted(ended)


def test_the_more_urgent_of_those_that_arrive_together_goes_first() -> None:
    """Patience makes the difference; among equals the earlier id."""
    priorities = [Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.NORMAL]
    queue = [sequence(i, 2, priority=priority) for i, priority in enumerate(priorities)]
    scheduler = scheduler_with(Limits(4, 64, 64), 64, 4, *queue)
    assert [chunk.sequence.id for chunk in scheduler.schedule().chunks] == [2, 1, 3, 0]


@pytest.mark.parametrize(("arrival", "first"), [(59.0, 1), (61.0, 0)])
def test_low_priority_is_overtaken_for_a_minute_and_no_longer(arrival: float, first: int) -> None:
    """However many urgent ones come, those that come later than its due time wait behind it."""
    scheduler = scheduler_with(
        Limits(1, 64, 64),
        64,
        4,
        sequence(0, 2, priority=Priority.LOW),
        sequence(1, 2, priority=Priority.HIGH, arrival=arrival),
    )
    assert scheduler.schedule(arrival).chunks[0].sequence.id == first


def test_a_deadline_earlier_than_the_patience_decides() -> None:
    """One that has two seconds left goes before one that can wait for ten."""
    scheduler = scheduler_with(
        Limits(1, 64, 64), 64, 4, sequence(0, 2), sequence(1, 2, arrival=1.0, deadline=3.0)
    )
    assert scheduler.schedule(1.0).chunks[0].sequence.id == 1


def test_begun_prompts_go_on_in_the_order_in_which_they_are_due() -> None:
    """Not in the order of their rank: a low one that is overdue would starve among chunks, too."""
    scheduler = scheduler_with(Limits(4, 4, 64), 64, 4, sequence(0, 8, priority=Priority.LOW))
    step(scheduler)
    scheduler.add(sequence(1, 8, priority=Priority.HIGH, arrival=61.0))
    assert shape(step(scheduler, 61.0)) == [(0, 4, 4)]
    assert shape(step(scheduler, 61.0)) == [(0, 8, 1), (1, 0, 3)]


def test_the_lowest_priority_is_preempted_though_it_is_older() -> None:
    """The urgent one came last and stays."""
    old = sequence(0, 3, priority=Priority.LOW)
    scheduler = scheduler_with(Limits(2, 64, 64), 3, 4, old)
    step(scheduler)
    scheduler.add(sequence(1, 3, priority=Priority.HIGH, arrival=5.0))
    while old.status is Status.RUNNING:
        step(scheduler, 5.0)
    assert [one.id for one in scheduler.running] == [1]
    assert scheduler.num_preemptions == 1


def test_a_preempted_sequence_finds_its_blocks_in_the_cache() -> None:
    """They stay until their place is needed: it goes on where it was, with all that it has written."""
    first, second = sequence(0, 3, max_tokens=6), sequence(1, 8, max_tokens=8)
    scheduler = scheduler_with(Limits(2, 64, 64), 5, 4, first, second)
    while scheduler.num_preemptions == 0:
        step(scheduler)
    assert (second.status, len(second.tokens)) == (Status.WAITING, 13)
    while second.status is Status.WAITING:
        plan = step(scheduler)
    assert shape(plan) == [(1, 12, 1)]
    assert second.num_cached_tokens == 0  # nothing was there when it first came, and that is what counts


@pytest.mark.parametrize(("num_blocks", "is_admitted"), [(4, False), (5, True)])
def test_a_prompt_is_admitted_if_every_running_sequence_has_a_spare_block(
    num_blocks: int, is_admitted: bool
) -> None:
    """One that takes the last block would be thrown out again by the next decode."""
    scheduler = scheduler_with(Limits(2, 64, 64), num_blocks, 4, sequence(0, 4), sequence(1, 12))
    assert len(step(scheduler).chunks) == 1 + is_admitted


def test_logits_that_are_no_numbers_spoil_nobody_elses_blocks() -> None:
    """Of two that computed the same block in one step, the sound one keeps its own; the cache is emptied."""
    sound, spoilt = (Sequence(i, [5] * 9, SamplingParams(max_tokens=8)) for i in (1, 0))
    scheduler = scheduler_with(Limits(2, 64, 64), 64, 4, sequence(2, 9, max_tokens=1))
    step(scheduler)
    assert scheduler.pool.num_cached == 2
    for one in (sound, spoilt):
        scheduler.add(one)
    plan = scheduler.schedule()
    own = list(sound.block_table)
    scheduler.commit(plan, [None, 7])
    scheduler.check()
    assert spoilt.status is Status.FINISHED
    assert sound.block_table == own
    assert scheduler.pool.num_cached == len(sound.path) == 2


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_sequence_past_its_deadline_ends_before_the_next_step(steps: int) -> None:
    """Waiting, prefilling and decoding alike; what the others do is not touched."""
    late = sequence(1, 8, deadline=7.0)
    scheduler = scheduler_with(Limits(4, 6, 64), 64, 4, late, sequence(2, 4))
    for _ in range(steps):
        step(scheduler, 6.9)
    plan = step(scheduler, 7.0)
    (ended,) = plan.failed
    assert (ended.sequence_id, ended.finish) == (1, FinishReason.ERROR)
    assert isinstance(ended.error, DeadlineExceededError)
    assert "7 s" in ended.error.message
    assert late.block_table == []
    assert [chunk.sequence.id for chunk in plan.chunks] == [2]
    assert not scheduler.schedule(8.0).failed


def test_a_pace_bounds_prefill_beside_decodes_and_nothing_else() -> None:
    """Alone a prompt may have the whole budget; decodes are never held back."""

    class Slow:
        def prefill_limit(self, num_decodes: int) -> int:
            return 2 * num_decodes

    scheduler = Scheduler(Limits(8, 20, 64), BlockPool(64, 4), pace=Slow())
    for one in (sequence(1, 4), sequence(2, 4)):
        scheduler.add(one)
    assert shape(step(scheduler)) == [(1, 0, 4), (2, 0, 4)]
    scheduler.add(sequence(3, 12))
    assert shape(step(scheduler)) == [(1, 4, 1), (2, 4, 1), (3, 0, 4)]


def test_a_prompt_larger_than_the_pool_fails_and_lets_the_next_one_in() -> None:
    """It could wait for ever at the head of the queue."""
    scheduler = scheduler_with(Limits(8, 64, 64), 4, 4, sequence(1, 17), sequence(2, 3))
    plan = scheduler.schedule()
    assert shape(plan) == [(2, 0, 3)]
    (failed,) = plan.failed
    assert (failed.sequence_id, failed.finish) == (1, FinishReason.ERROR)
    assert isinstance(failed.error, KVCapacityError)
    assert "17 tokens" in failed.error.message
    assert "holds 16" in failed.error.message


def test_a_prompt_that_fills_the_pool_exactly_is_computed() -> None:
    """The spare block is for the running ones; alone there is none."""
    scheduler = scheduler_with(Limits(8, 64, 64), 4, 4, sequence(1, 16, max_tokens=1))
    assert shape(step(scheduler)) == [(1, 0, 16)]
    assert not scheduler.has_work


def test_failing_finished_sequences_does_nothing() -> None:
    """A step can fail after some of its sequences ended."""
    ended = sequence(1, 3, max_tokens=1)
    scheduler = scheduler_with(Limits(8, 64, 64), 4, 4, ended)
    step(scheduler)
    assert scheduler.fail([ended], EngineError("x")) == []


@pytest.mark.parametrize("module", ["scheduler", "pacing", "retry_after"])
def test_scheduling_imports_without_torch(module: str) -> None:
    """So that it can be understood and tested without a model."""
    blocked = "import sys; sys.modules['torch'] = None; "
    subprocess.run([sys.executable, "-c", f"{blocked}import penstock.engine.{module}"], check=True)
