"""The engine step: schedule, run, sample, commit. Synchronous, single-threaded, no text, no HTTP."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from penstock.base.errors import EngineError
from penstock.engine.blocks import BlockPool
from penstock.engine.sampler import sample
from penstock.engine.scheduler import Limits, Scheduler, StepPlan
from penstock.engine.sequence import Output, Sequence

logger = logging.getLogger(__name__)

# A poisoned device fails every step; one request's bad luck does not come three times in a row.
MAX_FAILED_STEPS = 3


class ForwardPass(Protocol):
    """What the core needs of a runner."""

    def run(self, plan: StepPlan) -> Tensor:
        """float32 logits (num_sampled, vocab_size), rows in the order of `plan.sampling_chunks`."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine; counters run from its start."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_steps: int
    num_failed_steps: int
    num_preemptions: int
    prompt_tokens: int
    generated_tokens: int
    step_seconds: float


class EngineCore:
    """Scheduler and runner joined. Not thread-safe: one thread owns it."""

    def __init__(self, runner: ForwardPass, limits: Limits, num_blocks: int, block_size: int) -> None:
        self.runner = runner
        self.limits = limits
        self.scheduler = Scheduler(limits, BlockPool(num_blocks, block_size))
        self._steps = 0
        self._failed_steps = 0
        self._failed_in_row = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._seconds = 0.0

    @property
    def has_work(self) -> bool:
        """True while a sequence waits or runs."""
        return self.scheduler.has_work

    @property
    def is_broken(self) -> bool:
        """True after MAX_FAILED_STEPS failed steps in a row: it is the engine, not what it was asked."""
        return self._failed_in_row >= MAX_FAILED_STEPS

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence; it may join in the next step."""
        self.scheduler.add(sequence)

    def cancel(self, sequence_id: int) -> Output | None:
        """Ends a sequence between two steps and frees its blocks; None if it has ended already."""
        return self.scheduler.cancel(sequence_id)

    def step(self) -> list[Output]:
        """Runs one step and says what it brought.

        A step that raises ends the sequences that were in it with an EngineError; the rest go on.
        """
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        outputs = list(plan.failed)
        if plan.chunks:
            try:
                outputs += self._compute(plan)
                self._failed_in_row = 0
            except Exception:
                logger.exception("engine step failed", extra={"num_sequences": len(plan.chunks)})
                self._failed_steps += 1
                self._failed_in_row += 1
                error = EngineError("the engine failed while computing this request; see the engine's log")
                outputs += self.scheduler.fail([chunk.sequence for chunk in plan.chunks], error)
        self._steps += 1
        self._seconds += time.perf_counter() - started
        return outputs

    def stats(self) -> EngineStats:
        """A snapshot; may be read from another thread, each number being right by itself."""
        pool = self.scheduler.pool
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_free_blocks=pool.num_free,
            num_blocks=pool.num_blocks,
            num_steps=self._steps,
            num_failed_steps=self._failed_steps,
            num_preemptions=self.scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            step_seconds=self._seconds,
        )

    def _compute(self, plan: StepPlan) -> list[Output]:
        logits = self.runner.run(plan)
        sampling = plan.sampling_chunks
        tokens = sample(
            logits,
            [chunk.sequence.sampling for chunk in sampling],
            [len(chunk.sequence.tokens) for chunk in sampling],
        )
        for chunk in plan.chunks:
            prompt_left = max(chunk.sequence.num_prompt_tokens - chunk.start, 0)
            self._prompt_tokens += min(chunk.count, prompt_left)
        self._generated_tokens += len(tokens)
        return self.scheduler.commit(plan, tokens)
