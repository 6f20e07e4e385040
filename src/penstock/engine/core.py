"""The engine step: schedule, run, sample, commit. Synchronous, single-threaded, no text, no HTTP."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from penstock.base.errors import EngineError
from penstock.engine.blocks import BlockPool
from penstock.engine.drawing import Drawn, draw, fill_masks
from penstock.engine.pacing import Pacer
from penstock.engine.plan import Chunk, Limits, StepPlan
from penstock.engine.readout import StepView
from penstock.engine.sampler import Sampler, sample
from penstock.engine.sampling import SamplingParams
from penstock.engine.scheduler import DraftStats, Scheduler
from penstock.engine.sequence import Output, Sequence
from penstock.engine.watchdog import Pulse
from penstock.observe import engine_names
from penstock.observe.buckets import Buckets

logger = logging.getLogger(__name__)

# A poisoned device computes nothing, whatever it is given; what passes, such as memory that another process
# holds, gets two more chances.
MAX_FAILED_STEPS = 3
PROBE_ID = -1


class ForwardPass(StepView, Protocol):
    """What the core needs of a runner."""

    def run(self, plan: StepPlan) -> Tensor:
        """float32 logits of the rows that draw, (n, vocab_size), in the plan's order; the caller's to change
        until the next call.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine; counters run from its start."""

    num_running: int
    num_waiting: int
    num_held: int
    """Waiting for the prompt of another sequence."""
    num_free_blocks: int
    num_cached_blocks: int
    """Of the prefix cache, those that running sequences use included."""
    num_evictable_blocks: int
    """Those of them that no running sequence uses."""
    num_blocks: int
    num_steps: int
    num_failed_steps: int
    num_preemptions: int
    prompt_tokens: int
    generated_tokens: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    num_evictions: int
    num_remaps: int
    num_corrupted: int
    drafts: DraftStats
    step_seconds: Buckets
    step_tokens: Buckets

    @property
    def num_held_blocks(self) -> int:
        """Blocks that belong to sequences alone."""
        return self.num_blocks - self.num_free_blocks - self.num_cached_blocks


class EngineCore:
    """Scheduler and runner joined. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        runner: ForwardPass,
        limits: Limits,
        num_blocks: int,
        block_size: int,
        *,
        vocab_size: int = 0,
        prefix_cache: bool = True,
        decode_slowdown: float = 0.0,
        sampler: Sampler = sample,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`decode_slowdown` and `prefix_cache` are the settings of these names. `vocab_size` is the model's,
        which grammars need to know.

        Pacing is off here unless asked for: it makes the sizes of chunks depend on `clock`, which tells the
        time in seconds and is also that of sequences' arrivals and deadlines.
        """
        self.runner = runner
        self.sampler = sampler
        self.vocab_size = vocab_size
        self._grammars = ThreadPoolExecutor(1, "grammars")  # its thread begins with the first grammar
        self.limits = limits
        self.clock = clock
        self._pacer = Pacer(decode_slowdown) if decode_slowdown else None
        self.scheduler = Scheduler(
            limits, BlockPool(num_blocks, block_size), prefix_cache=prefix_cache, pace=self._pacer
        )
        self.pulse = Pulse()
        self._steps = 0
        self._failed_steps = 0
        self._failed_in_row = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._step_seconds = Buckets(engine_names.STEP_SECONDS.buckets)
        self._step_tokens = Buckets(engine_names.STEP_TOKENS.buckets)

    @property
    def is_caching(self) -> bool:
        """True if prefixes are kept."""
        return self.scheduler.tables.is_caching

    @property
    def has_work(self) -> bool:
        """True while a sequence waits or runs."""
        return self.scheduler.has_work

    @property
    def is_broken(self) -> bool:
        """True after MAX_FAILED_STEPS steps in a row in which neither any request nor a probe could be
        computed: it is the engine, not what it was asked.
        """
        return self._failed_in_row >= MAX_FAILED_STEPS

    def add(self, sequence: Sequence, siblings: SequenceOf[Sequence] = ()) -> None:
        """Queues a sequence, which may join in the next step, and others of the same prompt after it."""
        self.scheduler.add(sequence, siblings)

    def cancel(self, sequence_id: int) -> Output | None:
        """Ends a sequence between two steps and frees its blocks; None if it has ended already."""
        output = self.scheduler.cancel(sequence_id)
        self._check_idle()
        return output

    def move(self, sequence_id: int) -> Sequence | None:
        """Ends a sequence that is to go on elsewhere; gives it, or None if it has ended already."""
        sequence = self.scheduler.move(sequence_id)
        self._check_idle()
        return sequence

    def step(self) -> list[Output]:
        """Runs one step and says what it brought.

        A sequence whose work raises ends with an EngineError; those beside it get their tokens all the same.
        """
        started = self.clock()
        self.pulse.beat()
        plan = self.scheduler.schedule(started)
        outputs = list(plan.failed)
        plan_tokens = plan.num_tokens
        if plan.chunks:
            self._failed_in_row += 1  # until something of it is computed
            drawn = self._attempt(plan)
            outputs += self._isolate(plan) if drawn is None else self._commit(plan, drawn)
        self._steps += 1
        if plan.chunks:
            self._step_seconds.observe(self.clock() - started)
            self._step_tokens.observe(plan_tokens)
        self._check_idle()
        return outputs

    def stats(self) -> EngineStats:
        """A snapshot; may be read from another thread, each number being right by itself."""
        pool, tables = self.scheduler.pool, self.scheduler.tables
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_held=self.scheduler.num_held,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_evictable_blocks=tables.cache.num_evictable,
            num_blocks=pool.num_blocks,
            num_steps=self._steps,
            num_failed_steps=self._failed_steps,
            num_preemptions=self.scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            prefix_queried_tokens=tables.num_prompt_tokens,
            prefix_hit_tokens=tables.num_hit_tokens,
            num_evictions=tables.cache.num_evictions,
            num_remaps=tables.cache.num_remaps,
            num_corrupted=self.scheduler.num_corrupted,
            drafts=self.scheduler.drafts,
            step_seconds=self._step_seconds,
            step_tokens=self._step_tokens,
        )

    def _check_idle(self) -> None:
        """Begins with an empty pool if blocks are missing now that nobody uses any; costs two comparisons."""
        tables = self.scheduler.tables
        if not self.scheduler.has_work and not tables.is_idle:
            pool = tables.pool
            logger.error(
                "KV blocks lost; every block was taken back",
                extra={"num_held": pool.num_held, "num_cached": pool.num_cached, "num_free": pool.num_free},
            )
            tables.reset()

    def _attempt(self, plan: StepPlan) -> Drawn | None:
        """The tokens that `plan` gives; None, and a line in the log, if computing them raised.

        It changes nothing but KV slots that are not counted as computed yet, and writes the same there when
        it is repeated.
        """
        self.pulse.beat(len(plan.chunks), plan.num_tokens)
        started = self.clock()
        try:
            drawn = self._draw(plan)
            self._read_out(plan)
        except Exception:
            logger.exception(
                "engine step failed", extra={"num_sequences": len(plan.chunks), "num_tokens": plan.num_tokens}
            )
            return None
        self._failed_in_row = 0
        if self._pacer is not None and not plan.num_drafted:
            self._pacer.observe(plan.num_decodes, plan.num_tokens - plan.num_decodes, self.clock() - started)
        return drawn

    def _draw(self, plan: StepPlan) -> Drawn:
        """Runs the pass, and the grammars beside it: they need none of its results."""
        if not any(chunk.sequence.constraint is not None for chunk in plan.sampling_chunks):
            return draw(plan, self.runner.run(plan), self.sampler)
        filling = self._grammars.submit(fill_masks, plan, self.vocab_size)
        try:
            logits = self.runner.run(plan)
        finally:
            wait([filling])  # a grammar has one user at a time
        return draw(plan, logits, self.sampler, filling.result())

    def _read_out(self, plan: StepPlan) -> None:
        row = 0
        for chunk in plan.chunks:
            readout = chunk.sequence.readout
            if readout is not None and (count := min(chunk.end, readout.num_wanted) - chunk.start) > 0:
                readout.read(self.runner, row, chunk.start, count)
            row += chunk.end - chunk.start

    def _commit(self, plan: StepPlan, drawn: Drawn) -> list[Output]:
        for chunk in plan.chunks:
            prompt_left = max(chunk.sequence.num_prompt_tokens - chunk.start, 0)
            self._prompt_tokens += min(chunk.count, prompt_left)
        outputs = self.scheduler.commit(plan, drawn.tokens, drawn.logprobs)
        self._generated_tokens += sum(output.token is not None for output in outputs)
        return outputs

    def _isolate(self, plan: StepPlan) -> list[Output]:
        """Computes each chunk of a plan that raised by itself, and fails those that raise again.

        Called when the exception is gone, and with it the frames that hold the failed pass's memory.
        """
        self._failed_steps += 1
        outputs = []
        for chunk in plan.chunks:
            alone = StepPlan((chunk,))
            if (drawn := self._attempt(alone)) is not None:
                outputs += self._commit(alone, drawn)
            else:
                error = EngineError("the engine failed while computing this request; see the engine's log")
                outputs += self.scheduler.fail([chunk.sequence], error)
        if self._failed_in_row:
            self._probe()
        return outputs

    def _probe(self) -> None:
        """Computes a token for nobody, which clears a device under whose hands every request failed.

        Without it, one client that sends what cannot be computed, and repeats it as clients do, would look
        like a broken device.
        """
        probe = Sequence(PROBE_ID, [0], SamplingParams(max_tokens=1, temperature=0.0))
        probe.block_table = self.scheduler.pool.allocate(1)
        self._attempt(StepPlan((Chunk(probe, 0, 1),)))
        self.scheduler.pool.free(probe.block_table)
