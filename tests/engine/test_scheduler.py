"""The scheduler's rules one by one, and its invariants under random traffic. No torch needed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.base.errors import EngineError, KVCapacityError
from penstock.engine.blocks import BlockPool
from penstock.engine.scheduler import Limits, Scheduler, StepPlan
from penstock.engine.sequence import FinishReason, Output, SamplingParams, Sequence, Status

END_TOKEN = 1


def sequence(identity: int, length: int, max_tokens: int = 8) -> Sequence:
    """A prompt of `length` tokens."""
    stops = frozenset({END_TOKEN})
    return Sequence(identity, [0] * length, SamplingParams(max_tokens=max_tokens, stop_token_ids=stops))


def scheduler_with(limits: Limits, num_blocks: int, block_size: int, *sequences: Sequence) -> Scheduler:
    """A scheduler with these sequences waiting."""
    scheduler = Scheduler(limits, BlockPool(num_blocks, block_size))
    for one in sequences:
        scheduler.add(one)
    return scheduler


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    """(id, start, count) of each chunk."""
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in plan.chunks]


def step(scheduler: Scheduler) -> StepPlan:
    """One step in which every sampling chunk gets token 0."""
    plan = scheduler.schedule()
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


def test_the_newest_is_preempted_and_waits_at_the_head() -> None:
    """It loses its blocks and keeps its tokens; later arrivals do not overtake it."""
    scheduler = scheduler_with(Limits(2, 64, 64), 4, 4, sequence(1, 4), sequence(2, 3), sequence(3, 2))
    step(scheduler)  # both admitted, in blocks 1 + 1
    for _ in range(4):
        step(scheduler)
    newest = scheduler.running[-1]
    while newest.status is Status.RUNNING:
        step(scheduler)
    assert newest.id == 2
    assert scheduler.waiting[0] is newest
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


@pytest.mark.parametrize("module", ["scheduler", "blocks", "sequence"])
def test_scheduling_imports_without_torch_and_numpy(module: str) -> None:
    """So that it can be understood and tested without either."""
    blocked = "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None; "
    subprocess.run([sys.executable, "-c", f"{blocked}import penstock.engine.{module}"], check=True)


class Traffic(RuleBasedStateMachine):
    """Random requests, cancels, steps and failing steps under random limits."""

    @initialize(
        limits=st.builds(Limits, st.integers(1, 6), st.integers(1, 24), st.integers(2, 40)),
        num_blocks=st.integers(1, 20),
        block_size=st.integers(1, 4),
    )
    def start(self, limits: Limits, num_blocks: int, block_size: int) -> None:
        """Any pool and any limits, also a budget below the number of sequences."""
        self.limits = limits
        self.pool = BlockPool(num_blocks, block_size)
        self.scheduler = Scheduler(limits, self.pool)
        self.all: list[Sequence] = []
        self.ends: dict[int, Output] = {}
        self.tokens_seen: dict[int, int] = {}

    @rule(length=st.integers(1, 12) | st.integers(1, 40), max_tokens=st.integers(1, 30))
    def add(self, length: int, max_tokens: int) -> None:
        """A request that fits the context."""
        one = sequence(len(self.all), min(length, self.limits.max_model_len - 1), max_tokens)
        self.all.append(one)
        self.scheduler.add(one)

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Of any request, ended ones included."""
        one = data.draw(st.sampled_from(self.all))
        output = self.scheduler.cancel(one.id)
        assert (output is None) == (one.id in self.ends)
        if output is not None:
            self.take([output])

    @rule(count=st.integers(1, 8), end_in=st.integers(0, 15))
    def step(self, count: int, end_in: int) -> None:
        """Some steps that work; in one of them the first sampled token is an end token."""
        for turn in range(count):
            plan = self.plan()
            tokens = [0] * len(plan.sampling_chunks)
            if tokens and turn == end_in:
                tokens[0] = END_TOKEN
            outputs = self.scheduler.commit(plan, tokens)
            assert [output.token for output in outputs] == tokens
            self.take(outputs)
            self.scheduler.check()

    @rule()
    def fail(self) -> None:
        """A step that raises."""
        plan = self.plan()
        self.take(self.scheduler.fail([chunk.sequence for chunk in plan.chunks], EngineError("scripted")))

    @invariant()
    def blocks_are_conserved(self) -> None:
        """After every rule; and every open sequence is in exactly one place."""
        self.scheduler.check()
        queued = [one.id for one in (*self.scheduler.waiting, *self.scheduler.running)]
        assert sorted(queued) == [one.id for one in self.all if one.id not in self.ends]
        assert len(self.scheduler.running) <= self.limits.max_sequences
        assert self.scheduler.has_work == bool(queued)

    def plan(self) -> StepPlan:
        """Plans a step and checks what a plan promises."""
        had_work = self.scheduler.has_work
        plan = self.scheduler.schedule()
        identities = [chunk.sequence.id for chunk in plan.chunks]
        assert len(identities) == len(set(identities))
        assert plan.num_tokens <= self.limits.max_batch_tokens
        assert bool(plan.chunks or plan.failed) == had_work  # no empty step while there is work
        for chunk in plan.chunks:
            assert chunk.sequence.status is Status.RUNNING
            assert chunk.count > 0
            assert chunk.start == chunk.sequence.num_computed
            end = chunk.start + chunk.count
            assert end <= len(chunk.sequence.tokens) <= self.limits.max_model_len
            assert len(chunk.sequence.block_table) * self.pool.block_size >= end
        for output in plan.failed:
            assert isinstance(output.error, KVCapacityError)
            assert self.pool.blocks_for(len(self.all[output.sequence_id].tokens)) > self.pool.num_blocks
        self.take(plan.failed)
        return plan

    def take(self, outputs) -> None:  # type: ignore[no-untyped-def]
        """Nothing comes after the end."""
        for output in outputs:
            assert output.sequence_id not in self.ends
            if output.finish is not None:
                self.ends[output.sequence_id] = output

    def teardown(self) -> None:
        """Whatever is left ends within a bounded number of steps, truly."""
        if not hasattr(self, "scheduler"):
            return
        left = [one for one in self.all if one.id not in self.ends]
        for _ in range(1 + (len(left) + 1) * sum(len(one.tokens) + one.sampling.max_tokens for one in left)):
            plan = self.plan()
            self.take(self.scheduler.commit(plan, [0] * len(plan.sampling_chunks)))
            self.scheduler.check()
        assert len(self.ends) == len(self.all)
        assert self.pool.num_free == self.pool.num_blocks
        for one in left:
            if self.ends[one.id].finish is FinishReason.LENGTH:
                assert one.num_generated == min(
                    one.sampling.max_tokens, self.limits.max_model_len - one.num_prompt_tokens
                )


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40)
