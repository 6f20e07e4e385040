"""Which sequences run in the next step, and with how many tokens. No torch here.

One token budget per step mixes decode rows and prefill chunks: decodes first, then chunks of prompts
already admitted, then new prompts, both in the order in which they are due. Admission takes the blocks of
the whole known text and keeps one spare block per running sequence. When a decode finds no block, the
running sequence of the lowest priority, the newest among equals, is preempted by recompute: it gives its
blocks back, keeps its tokens and waits in its old place. What the prefix cache still has of it is not
computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol

from penstock.base.errors import DeadlineExceededError, EngineError, KVCapacityError, PenstockError
from penstock.engine.block_tables import BlockTables
from penstock.engine.blocks import BlockPool
from penstock.engine.ranking import Ranking
from penstock.engine.sequence import FinishReason, Output, Sequence, Status


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step and of a sequence, in tokens and sequences."""

    max_sequences: int
    max_batch_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, start + count) of a sequence, computed in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """True if the chunk reaches the last known token, so that its logits give the next one."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The work of one step. Every chunk's sequence holds the blocks that the chunk writes to."""

    chunks: tuple[Chunk, ...] = ()
    failed: tuple[Output, ...] = ()
    """Sequences that ended while planning: past their deadline, or more than the pool can ever hold."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def num_decodes(self) -> int:
        """Chunks of one token, which is what a decode costs."""
        return sum(chunk.count == 1 for chunk in self.chunks)

    @property
    def sampling_chunks(self) -> list[Chunk]:
        """Chunks whose last position gives a new token, in batch order."""
        return [chunk for chunk in self.chunks if chunk.samples]


class Pace(Protocol):
    """Bounds the prefill that running decodes have to wait for."""

    def prefill_limit(self, num_decodes: int) -> int:
        """Prefill tokens that a step with this many decodes may compute; at least 1."""
        ...


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int
    chunks: list[Chunk] = field(default_factory=list)
    failed: list[Output] = field(default_factory=list)

    def add(self, sequence: Sequence) -> None:
        count = min(sequence.num_pending, self.budget)
        self.chunks.append(Chunk(sequence, sequence.num_computed, count))
        self.budget -= count


def _by_due(sequence: Sequence) -> tuple[float, ...]:
    return sequence.due, sequence.arrival, sequence.id


def _by_rank(sequence: Sequence) -> tuple[float, ...]:
    return sequence.priority, sequence.arrival, sequence.id


class Scheduler:
    """Owns the queue, the running set and every block table; not thread-safe."""

    def __init__(
        self, limits: Limits, pool: BlockPool, *, prefix_cache: bool = True, pace: Pace | None = None
    ) -> None:
        """Without `pace` only `limits` bound a step."""
        self.limits = limits
        self.pool = pool
        self.tables = BlockTables(pool, is_caching=prefix_cache)
        self._pace = pace
        self.waiting = Ranking(_by_due)
        self.running = Ranking(_by_rank)  # the last one is the first to be preempted
        self._deadlines = Ranking(lambda sequence: (sequence.deadline, sequence.id))
        self._by_id: dict[int, Sequence] = {}
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """True while a sequence waits or runs."""
        return bool(self._by_id)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. The caller has checked its length against `limits.max_model_len`."""
        assert 0 < len(sequence.tokens) < self.limits.max_model_len + 1
        assert sequence.id not in self._by_id
        self._by_id[sequence.id] = sequence
        self.waiting.add(sequence)
        if sequence.deadline < math.inf:
            self._deadlines.add(sequence)

    def cancel(self, sequence_id: int) -> Output | None:
        """Ends a sequence in whatever state it is and frees its blocks; None if it has ended already."""
        sequence = self._by_id.get(sequence_id)
        return None if sequence is None else self._finish(sequence, FinishReason.CANCELLED)

    def fail(self, sequences: Iterable[Sequence], error: EngineError) -> list[Output]:
        """Ends these sequences with `error` and frees their blocks."""
        return [
            self._finish(sequence, FinishReason.ERROR, error=error)
            for sequence in sequences
            if sequence.status is not Status.FINISHED
        ]

    def schedule(self, now: float = 0.0) -> StepPlan:
        """Plans the next step: ends what is too late, takes blocks, admits, preempts.

        `now` is in seconds on the clock of the sequences' times. Tokens are committed by :meth:`commit`.
        """
        draft = _Draft(self.limits.max_batch_tokens)
        self._expire(draft, now)
        for sequence in self.running:
            if draft.budget and self._is_decoding(sequence) and self._grow(sequence, draft):
                draft.add(sequence)
        if draft.chunks and self._pace is not None:
            draft.budget = min(draft.budget, self._pace.prefill_limit(len(draft.chunks)))
        for sequence in sorted((one for one in self.running if one.num_pending > 1), key=_by_due):
            if draft.budget:
                draft.add(sequence)
        self._admit(draft)
        return StepPlan(tuple(draft.chunks), tuple(draft.failed))

    def commit(self, plan: StepPlan, tokens: SequenceOf[int | None]) -> list[Output]:
        """Records that `plan` was computed and `tokens` were sampled, one per sampling chunk, in order.

        None instead of a token ends that sequence with an error: its logits held no distribution.
        Returns one output per sampling chunk; a sequence that ended has given its blocks back.
        """
        sampled = list(zip((chunk.sequence for chunk in plan.sampling_chunks), tokens, strict=True))
        broken = {sequence.id for sequence, token in sampled if token is None}
        for chunk in plan.chunks:
            chunk.sequence.num_computed += chunk.count
            if chunk.sequence.id not in broken:
                self.tables.publish(chunk.sequence)
        outputs = [self._append(sequence, token) for sequence, token in sampled]
        if broken:
            # Their earlier chunks are cached and may be what spoils the logits: nobody is to inherit that.
            self.tables.forget()
        return outputs

    def check(self) -> None:
        """Asserts that blocks are conserved and that every sequence is where its status says."""
        self.tables.check(self._by_id.values())
        for sequence in self._by_id.values():
            assert (sequence in self.running) == (sequence.status is Status.RUNNING)
            assert (sequence in self.waiting) == (sequence.status is Status.WAITING)
            assert (sequence in self._deadlines) == (sequence.deadline < math.inf)
        assert len(self.running) + len(self.waiting) == len(self._by_id)

    def _append(self, sequence: Sequence, token: int | None) -> Output:
        if token is None:
            error = EngineError("the model computed logits that are no numbers; try dtype float32")
            return self._finish(sequence, FinishReason.ERROR, error=error)
        sequence.tokens.append(token)
        sampling = sequence.sampling
        if token in sampling.stop_token_ids:
            return self._finish(sequence, FinishReason.STOP, token)
        full = len(sequence.tokens) >= self.limits.max_model_len
        if full or sequence.num_generated >= sampling.max_tokens:
            return self._finish(sequence, FinishReason.LENGTH, token)
        return Output(sequence.id, token)

    def _expire(self, draft: _Draft, now: float) -> None:
        while self._deadlines and self._deadlines.first.deadline <= now:
            late = self._deadlines.first
            error = DeadlineExceededError(
                f"the request's time was up after {late.deadline - late.arrival:.3g} s, "
                f"{late.num_generated} tokens into its answer"
            )
            draft.failed.append(self._finish(late, FinishReason.ERROR, error=error))

    @staticmethod
    def _is_decoding(sequence: Sequence) -> bool:
        """False also for one that was preempted in favour of another a moment ago."""
        return sequence.status is Status.RUNNING and sequence.num_pending == 1

    def _grow(self, sequence: Sequence, draft: _Draft) -> bool:
        """Gives a decoding sequence the block for its next token; False if it was preempted or failed.

        The step's decodes are planned in the order of rank, so the last of the running is not among them.
        """
        while not self.tables.grow(sequence):
            if len(self.running) == 1:
                draft.failed.append(self._refuse(sequence))
                return False
            victim = self.running.last
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _admit(self, draft: _Draft) -> None:
        """Strictly in the order of due times: who overtakes a long prompt may keep it waiting for ever."""
        while self.waiting and draft.budget and len(self.running) < self.limits.max_sequences:
            sequence = self.waiting.first
            if self.pool.blocks_for(len(sequence.tokens)) > self.pool.num_blocks:
                draft.failed.append(self._refuse(sequence))
                continue
            if not self.tables.admit(sequence, reserve=len(self.running)):
                return
            self.waiting.remove(sequence)
            sequence.move_to(Status.RUNNING)
            self.running.add(sequence)
            draft.add(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.tables.release(sequence)
        self.num_preemptions += 1
        sequence.move_to(Status.WAITING)
        self.waiting.add(sequence)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token: int | None = None,
        *,
        error: PenstockError | None = None,
    ) -> Output:
        (self.running if sequence.status is Status.RUNNING else self.waiting).remove(sequence)
        if sequence.deadline < math.inf:
            self._deadlines.remove(sequence)
        self.tables.release(sequence)
        sequence.move_to(Status.FINISHED)
        del self._by_id[sequence.id]
        return Output(sequence.id, token, reason, error)

    def _refuse(self, sequence: Sequence) -> Output:
        error = KVCapacityError(
            f"the sequence has {len(sequence.tokens)} tokens and the KV pool holds "
            f"{self.pool.num_blocks * self.pool.block_size}; raise kv_cache_mb or shorten the prompt"
        )
        return self._finish(sequence, FinishReason.ERROR, error=error)
