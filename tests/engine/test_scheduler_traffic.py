"""Pool, prefix cache and scheduler under random traffic: what always holds. No torch needed."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.base.errors import DeadlineExceededError, EngineError, KVCapacityError
from penstock.engine.blocks import BlockPool
from penstock.engine.plan import Limits, StepPlan
from penstock.engine.sampling import SamplingParams
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import FinishReason, Output, Priority, Sequence, Status

END_TOKEN = 1
# Few texts, so that prompts share prefixes, branch off each other and grow into each other.
TEXTS = [[0] * 40, [0] * 7 + [2] * 33, [0, 2] * 20, [3] * 40]


class Traffic(RuleBasedStateMachine):
    """Random requests, cancels, deadlines, steps and failing steps under random limits."""

    @initialize(
        limits=st.builds(Limits, st.integers(1, 6), st.integers(1, 24), st.integers(2, 40)),
        num_blocks=st.integers(1, 20),
        block_size=st.integers(1, 4),
        prefix_cache=st.sampled_from([True, True, True, False]),
    )
    def start(self, limits: Limits, num_blocks: int, block_size: int, prefix_cache: bool) -> None:
        """Any pool and any limits, also a budget below the number of sequences."""
        self.limits = limits
        self.pool = BlockPool(num_blocks, block_size)
        self.scheduler = Scheduler(limits, self.pool, prefix_cache=prefix_cache)
        self.now = 0.0
        self.all: list[Sequence] = []
        self.ends: dict[int, Output] = {}
        self.memory: dict[int, object] = {}  # what each slot of the pool holds

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.integers(1, 12) | st.integers(1, 40),
        max_tokens=st.integers(1, 30),
        priority=st.sampled_from(Priority),
        time_left=st.just(math.inf) | st.floats(0, 100),
        cache_salt=st.sampled_from(["", "", "other"]),
    )
    def add(self, text: list[int], length: int, max_tokens: int, time_left: float, **fields: object) -> None:
        """A request that fits the context."""
        one = Sequence(
            len(self.all),
            text[: min(length, self.limits.max_model_len - 1)],
            SamplingParams(max_tokens=max_tokens, stop_token_ids=frozenset({END_TOKEN})),
            arrival=self.now,
            deadline=self.now + time_left,
            **fields,  # type: ignore[arg-type]
        )
        self.all.append(one)
        self.scheduler.add(one)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Of any request, ended ones included."""
        one = data.draw(st.sampled_from(self.all))
        output = self.scheduler.cancel(one.id)
        assert (output is None) == (one.id in self.ends)
        if output is not None:
            self.take([output])

    @rule(count=st.integers(1, 8), turn=st.integers(0, 15), token=st.sampled_from([END_TOKEN, None, 2]))
    def step(self, count: int, turn: int, token: int | None) -> None:
        """Some steps that work; in one of them the first sampled token is another one, or none."""
        for index in range(count):
            plan = self.plan()
            tokens: list[int | None] = [0] * len(plan.sampling_chunks)
            if tokens and index == turn:
                tokens[0] = token
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
    def everything_is_in_its_place(self) -> None:
        """After every rule: blocks conserved, the queue in order, every open sequence in just one place."""
        self.scheduler.check()
        queued = [one.id for one in (*self.scheduler.waiting, *self.scheduler.running)]
        assert sorted(queued) == [one.id for one in self.all if one.id not in self.ends]
        dues = [one.due for one in self.scheduler.waiting]
        assert dues == sorted(dues)
        assert len(self.scheduler.running) <= self.limits.max_sequences
        assert self.scheduler.has_work == bool(queued)
        if not queued:
            assert self.scheduler.tables.is_idle

    def plan(self) -> StepPlan:
        """Plans a step and checks what a plan promises."""
        had_work = self.scheduler.has_work
        ran = set(self.scheduler.running)
        plan = self.scheduler.schedule(self.now)
        identities = [chunk.sequence.id for chunk in plan.chunks]
        assert len(identities) == len(set(identities))
        assert plan.num_tokens <= self.limits.max_batch_tokens
        assert bool(plan.chunks or plan.failed) == had_work  # no empty step while there is work
        for chunk in plan.chunks:
            assert chunk.sequence.status is Status.RUNNING
            assert chunk.count > 0  # also where the whole prompt was found
            assert chunk.start == chunk.sequence.num_computed
            assert chunk.start + chunk.count <= len(chunk.sequence.tokens) <= self.limits.max_model_len
            self.compute(chunk.sequence, chunk.start, chunk.start + chunk.count)
        for admitted in set(self.scheduler.running) - ran:
            assert all(admitted.due <= waiting.due for waiting in self.scheduler.waiting)
        for output in plan.failed:
            one = self.all[output.sequence_id]
            if isinstance(output.error, DeadlineExceededError):
                assert one.deadline <= self.now
            else:
                assert isinstance(output.error, KVCapacityError)
                assert self.pool.blocks_for(len(one.tokens)) > self.pool.num_blocks
        self.take(plan.failed)
        assert all(one.deadline > self.now for one in self.all if one.id not in self.ends)
        return plan

    def compute(self, one: Sequence, start: int, end: int) -> None:
        """Writes what a forward pass would, and reads what it would: all text so far, of the same salt."""
        for position in range(end):
            slot = one.block_table[position // self.pool.block_size] * self.pool.block_size
            slot += position % self.pool.block_size
            truth = (one.cache_salt, one.tokens[: position + 1])
            if position >= start:
                self.memory[slot] = truth
            assert self.memory[slot] == truth

    def take(self, outputs) -> None:  # type: ignore[no-untyped-def]
        """Nothing comes after the end."""
        for output in outputs:
            assert output.sequence_id not in self.ends
            if output.finish is not None:
                self.ends[output.sequence_id] = output
                assert self.all[output.sequence_id].block_table == []

    def teardown(self) -> None:
        """Whatever is left ends within a bounded number of steps, truly."""
        if not hasattr(self, "scheduler"):
            return
        left = [one for one in self.all if one.id not in self.ends]
        bound = (len(left) + 1) * sum(len(one.tokens) + one.sampling.max_tokens for one in left)
        steps = 0
        while self.scheduler.has_work:
            steps += 1
            assert steps <= bound
            plan = self.plan()
            self.take(self.scheduler.commit(plan, [0] * len(plan.sampling_chunks)))
            self.scheduler.check()
        assert len(self.ends) == len(self.all)
        assert self.scheduler.tables.is_idle
        for one in left:
            if self.ends[one.id].finish is FinishReason.LENGTH:
                assert one.num_generated == min(
                    one.sampling.max_tokens, self.limits.max_model_len - one.num_prompt_tokens
                )


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40)
