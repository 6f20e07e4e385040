"""Which sequences run in the next step, and with how many tokens. No torch here.

One token budget per step mixes decode rows and prefill chunks: decodes first, then chunks of prompts
already admitted, then new prompts, both in the order in which they are due. Admission takes the blocks of
the whole known text and keeps one spare block per running sequence. When a decode finds no block, the
running sequence of the lowest priority, the newest among equals, is preempted by recompute: it gives its
blocks back, keeps its tokens and waits in its old place. What the prefix cache still has of it is not
computed again.

A step of a few decodes and nothing else may carry drafts, guesses at what follows. Each row of a chunk with a
draft is drawn as if the draft before it were the text, by the draw that belongs to its position; the first
token that is not the draft's ends it. So a draft changes how fast tokens come, never which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol

from penstock.base.errors import DeadlineExceededError, EngineError, KVCapacityError, PenstockError
from penstock.engine.block_tables import BlockTables
from penstock.engine.blocks import BlockPool
from penstock.engine.plan import Chunk, Limits, StepPlan
from penstock.engine.prompt_lookup import Lookup
from penstock.engine.ranking import Ranking
from penstock.engine.sampling import TokenLogprobs
from penstock.engine.sequence import FinishReason, Output, Sequence, Status


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


@dataclass(slots=True)
class DraftStats:
    """What became of the drafts so far."""

    num_drafts: int = 0
    num_tokens: int = 0
    num_accepted: int = 0
    accepted_by_position: list[int] = field(default_factory=list)
    """By place in the draft; as long as the longest that was accepted."""

    def count(self, num_tokens: int, num_accepted: int) -> None:
        """Counts one draft."""
        self.accepted_by_position += [0] * (num_accepted - len(self.accepted_by_position))
        for position in range(num_accepted):
            self.accepted_by_position[position] += 1
        self.num_drafts += 1
        self.num_tokens += num_tokens
        self.num_accepted += num_accepted


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
        self._held: dict[int, list[Sequence]] = {}  # by the sequence they wait for
        self.num_preemptions = 0
        self.num_corrupted = 0
        """Sequences whose logits held no distribution."""
        self.drafts = DraftStats()

    @property
    def num_held(self) -> int:
        """Sequences that wait for the prompt of another."""
        return len(self._by_id) - len(self.running) - len(self.waiting)

    @property
    def has_work(self) -> bool:
        """True while a sequence waits or runs."""
        return bool(self._by_id)

    def add(self, sequence: Sequence, siblings: SequenceOf[Sequence] = ()) -> None:
        """Queues a sequence, and others of the same prompt, which wait until it is computed once.

        The caller has checked their length against `limits.max_model_len`.
        """
        for one in (sequence, *siblings):
            assert 0 < len(one.tokens) < self.limits.max_model_len + 1
            assert one.id not in self._by_id
            self._by_id[one.id] = one
            if one.deadline < math.inf:
                self._deadlines.add(one)
        self.waiting.add(sequence)
        if siblings and self.tables.is_caching:
            self._held[sequence.id] = list(siblings)
            for sibling in siblings:
                sibling.status = Status.HELD
        else:
            for sibling in siblings:
                self.waiting.add(sibling)

    def cancel(self, sequence_id: int) -> Output | None:
        """Ends a sequence in whatever state it is and frees its blocks; None if it has ended already."""
        sequence = self._by_id.get(sequence_id)
        return None if sequence is None else self._finish(sequence, FinishReason.CANCELLED)

    def move(self, sequence_id: int) -> Sequence | None:
        """Ends a sequence that is to go on elsewhere; gives it, or None if it has ended already."""
        sequence = self._by_id.get(sequence_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.MOVED)
        return sequence

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
        self._admit(draft, now)
        if 0 < len(draft.chunks) < self.limits.max_draft_rows and all(
            chunk.is_decode for chunk in draft.chunks
        ):
            draft.chunks = self._speculate(draft.chunks)
        return StepPlan(tuple(draft.chunks), tuple(draft.failed))

    def commit(
        self,
        plan: StepPlan,
        tokens: SequenceOf[int | None],
        logprobs: Mapping[int, TokenLogprobs] | None = None,
    ) -> list[Output]:
        """Records that `plan` was computed and `tokens` were drawn, one per row that draws, in order.

        None instead of a token ends that sequence with an error: its logits held no distribution. `logprobs`
        are by row too. Returns outputs in the plan's order, one or more per sampling chunk; a sequence that
        ended has given its blocks back.
        """
        outputs: list[Output] = []
        broken: list[Sequence] = []
        row = 0
        for chunk in plan.chunks:
            num_draws = chunk.num_draws  # before its sequence grows
            accepted = self._accept(chunk, tokens[row : row + num_draws])
            chunk.sequence.num_computed += chunk.count + max(len(accepted) - 1, 0)
            chunk.sequence.tokens += accepted[:-1]
            if num_draws and not accepted:
                broken.append(chunk.sequence)
            else:
                self.tables.publish(chunk.sequence)
            self._release_held(chunk.sequence)
            outputs += self._report(chunk.sequence, accepted, row, logprobs or {}) if num_draws else ()
            row += num_draws
        assert row == len(tokens), "a row has no token"
        self.num_corrupted += len(broken)
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
        held = [sequence for held in self._held.values() for sequence in held]
        assert all(sequence.status is Status.HELD for sequence in held)
        assert len(self.running) + len(self.waiting) + len(held) == len(self._by_id)

    def _accept(self, chunk: Chunk, drawn: SequenceOf[int | None]) -> list[int]:
        """The tokens that count: up to the first that is not the draft's or that ends the sequence.

        There is none if the first row held no distribution.
        """
        sequence, accepted = chunk.sequence, list[int]()
        for token, guess in zip(drawn, (*chunk.draft, None), strict=False):
            if token is None:
                break
            accepted.append(token)
            if token != guess or self._end_with(sequence, token, len(accepted)) is not None:
                break
        if chunk.draft and sequence.lookup is not None:
            num_accepted = max(len(accepted) - 1, 0)
            self.drafts.count(len(chunk.draft), num_accepted)
            sequence.lookup.learn(len(chunk.draft), num_accepted, self.limits.max_draft_rows - 1)
        return accepted

    def _end_with(self, sequence: Sequence, token: int, count: int) -> FinishReason | None:
        """How a sequence ends that `count` tokens more, the last of them `token`, are drawn for."""
        sampling = sequence.sampling
        if sampling.max_tokens and token in sampling.stop_token_ids:
            return FinishReason.STOP
        full = len(sequence.tokens) + count >= self.limits.max_model_len
        return FinishReason.LENGTH if full or sequence.num_generated + count >= sampling.max_tokens else None

    def _report(
        self, sequence: Sequence, accepted: list[int], row: int, logprobs: Mapping[int, TokenLogprobs]
    ) -> list[Output]:
        """The outputs of one sequence, of whose accepted tokens all but the last are its already."""
        if not accepted:
            error = EngineError("the model computed logits that are no numbers; try dtype float32")
            return [self._finish(sequence, FinishReason.ERROR, error=error)]
        if not sequence.sampling.max_tokens:
            return [self._finish(sequence, FinishReason.LENGTH)]
        *drafted, last = accepted
        outputs = [
            Output(sequence.id, token, logprobs=logprobs.get(row + i)) for i, token in enumerate(drafted)
        ]
        finish = self._end_with(sequence, last, 1)
        sequence.tokens.append(last)
        said = logprobs.get(row + len(drafted))
        if finish is None:
            outputs.append(Output(sequence.id, last, logprobs=said))
        else:
            outputs.append(self._finish(sequence, finish, last, logprobs=said))
        return outputs

    def _release_held(self, sequence: Sequence, *, at_end: bool = False) -> None:
        """Queues those that wait for this sequence's prompt once it is computed, or never will be."""
        if sequence.id in self._held and (at_end or sequence.num_computed >= sequence.num_prompt_tokens):
            for sibling in self._held.pop(sequence.id):
                sibling.move_to(Status.WAITING)
                self.waiting.add(sibling)

    def _speculate(self, chunks: list[Chunk]) -> list[Chunk]:
        """Gives these decodes drafts, as far as rows and blocks go."""
        limit = self.limits.max_draft_rows // len(chunks) - 1
        drafted = []
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.lookup is None:
                sequence.lookup = Lookup()
            room = min(
                limit,
                sequence.sampling.max_tokens - sequence.num_generated - 1,
                self.limits.max_model_len - len(sequence.tokens) - 1,
            )
            draft = sequence.lookup.propose(sequence.tokens, room)
            if draft and self.tables.grow(sequence, len(draft)):
                chunk = Chunk(sequence, chunk.start, chunk.count, draft)
            drafted.append(chunk)
        return drafted

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

    def _admit(self, draft: _Draft, now: float) -> None:
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
            sequence.admitted = now if sequence.admitted is None else sequence.admitted
            self.running.add(sequence)
            draft.add(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.tables.release(sequence)
        self.num_preemptions += 1
        sequence.num_preemptions += 1
        sequence.move_to(Status.WAITING)
        self.waiting.add(sequence)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token: int | None = None,
        *,
        error: PenstockError | None = None,
        logprobs: TokenLogprobs | None = None,
    ) -> Output:
        if sequence.status is Status.HELD:
            self._unhold(sequence)
        else:
            (self.running if sequence.status is Status.RUNNING else self.waiting).remove(sequence)
        if sequence.deadline < math.inf:
            self._deadlines.remove(sequence)
        self.tables.release(sequence)
        sequence.move_to(Status.FINISHED)
        del self._by_id[sequence.id]
        self._release_held(sequence, at_end=True)
        return Output(sequence.id, token, reason, error, logprobs)

    def _unhold(self, sequence: Sequence) -> None:
        leader = next(leader for leader, held in self._held.items() if sequence in held)
        self._held[leader].remove(sequence)
        if not self._held[leader]:
            del self._held[leader]

    def _refuse(self, sequence: Sequence) -> Output:
        error = KVCapacityError(
            f"the sequence has {len(sequence.tokens)} tokens and the KV pool holds "
            f"{self.pool.num_blocks * self.pool.block_size}; raise kv_cache_mb or shorten the prompt"
        )
        return self._finish(sequence, FinishReason.ERROR, error=error)
