"""Which sequences run in the next step, and with how many tokens. No torch here.

One token budget per step mixes decode rows and prefill chunks: decodes first, then chunks of prompts
already admitted, then new prompts. Admission takes the blocks of the whole known text and keeps one spare
block per running sequence; when a decode finds no block, the newest sequence is preempted by recompute:
it gives its blocks back, keeps its tokens and waits at the head of the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from penstock.base.errors import EngineError, KVCapacityError
from penstock.engine.blocks import BlockPool
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
    """Sequences that ended while planning because the pool can never hold them."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def sampling_chunks(self) -> list[Chunk]:
        """Chunks whose last position gives a new token, in batch order."""
        return [chunk for chunk in self.chunks if chunk.samples]


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int
    chunks: list[Chunk] = field(default_factory=list)
    planned: set[int] = field(default_factory=set)
    failed: list[Output] = field(default_factory=list)

    def add(self, sequence: Sequence) -> None:
        count = min(sequence.num_pending, self.budget)
        self.chunks.append(Chunk(sequence, sequence.num_computed, count))
        self.planned.add(sequence.id)
        self.budget -= count


class Scheduler:
    """Owns the queue, the running set and every block table; not thread-safe."""

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        self.limits = limits
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest admission first
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
        self.waiting.append(sequence)

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

    def schedule(self) -> StepPlan:
        """Plans the next step: takes blocks, admits, preempts. Tokens are committed by :meth:`commit`."""
        draft = _Draft(self.limits.max_batch_tokens)
        for sequence in [s for s in self.running if s.num_pending == 1]:
            if draft.budget and sequence.status is Status.RUNNING and self._grow(sequence, draft):
                draft.add(sequence)
        for sequence in self.running:
            if draft.budget and sequence.id not in draft.planned and sequence.num_pending > 1:
                draft.add(sequence)
        self._admit(draft)
        return StepPlan(tuple(draft.chunks), tuple(draft.failed))

    def commit(self, plan: StepPlan, tokens: SequenceOf[int | None]) -> list[Output]:
        """Records that `plan` was computed and `tokens` were sampled, one per sampling chunk, in order.

        None instead of a token ends that sequence with an error: its logits held no distribution.
        Returns one output per sampling chunk; a sequence that ended has given its blocks back.
        """
        sampling = plan.sampling_chunks
        assert len(tokens) == len(sampling)
        for chunk in plan.chunks:
            chunk.sequence.num_computed += chunk.count
        return [self._append(chunk.sequence, token) for chunk, token in zip(sampling, tokens, strict=True)]

    def check(self) -> None:
        """Asserts that blocks are conserved and that every table covers what was computed."""
        self.pool.check(sequence.block_table for sequence in self._by_id.values())
        for sequence in self._by_id.values():
            assert len(sequence.block_table) * self.pool.block_size >= sequence.num_computed

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

    def _grow(self, sequence: Sequence, draft: _Draft) -> bool:
        """Gives a decoding sequence the block for its next token; False if it was preempted or failed."""
        missing = self.pool.blocks_for(len(sequence.tokens)) - len(sequence.block_table)
        while missing > self.pool.num_free:
            victim = next((s for s in reversed(self.running) if s.id not in draft.planned), sequence)
            if victim is sequence and len(self.running) == 1:
                draft.failed.append(
                    self._finish(sequence, FinishReason.ERROR, error=self._too_long(sequence))
                )
                return False
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.block_table += self.pool.allocate(max(missing, 0))
        return True

    def _admit(self, draft: _Draft) -> None:
        while self.waiting and draft.budget and len(self.running) < self.limits.max_sequences:
            sequence = self.waiting[0]
            needed = self.pool.blocks_for(len(sequence.tokens))
            if needed > self.pool.num_blocks:
                draft.failed.append(
                    self._finish(sequence, FinishReason.ERROR, error=self._too_long(sequence))
                )
                continue
            if needed + len(self.running) > self.pool.num_free:
                return
            self.waiting.popleft()
            sequence.block_table = self.pool.allocate(needed)
            sequence.move_to(Status.RUNNING)
            self.running.append(sequence)
            draft.add(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self.num_preemptions += 1
        sequence.move_to(Status.WAITING)
        self.waiting.appendleft(sequence)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token: int | None = None,
        *,
        error: EngineError | None = None,
    ) -> Output:
        (self.running if sequence.status is Status.RUNNING else self.waiting).remove(sequence)
        self._release(sequence)
        sequence.move_to(Status.FINISHED)
        del self._by_id[sequence.id]
        return Output(sequence.id, token, reason, error)

    def _release(self, sequence: Sequence) -> None:
        self.pool.free(sequence.block_table)
        sequence.block_table = []

    def _too_long(self, sequence: Sequence) -> KVCapacityError:
        capacity = self.pool.num_blocks * self.pool.block_size
        return KVCapacityError(
            f"the sequence has {len(sequence.tokens)} tokens and the KV pool holds {capacity}; "
            "raise kv_cache_mb or shorten the prompt"
        )
