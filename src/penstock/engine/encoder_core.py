"""The encoder's step: choose texts, compute, pool, say which requests are complete. Synchronous."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from penstock.base.errors import DeadlineExceededError, EngineError, PenstockError
from penstock.engine.encoder import Encoder, EncoderInput, build_encoder_batch
from penstock.engine.encoder_queue import Job, JobQueue
from penstock.engine.pooling import Pooling, Vector, pool
from penstock.engine.watchdog import Pulse
from penstock.observe.buckets import Buckets
from penstock.observe.engine_names import STEP_SECONDS

logger = logging.getLogger(__name__)

# A poisoned device computes nothing, whatever it is given; what passes gets two more chances.
MAX_FAILED_STEPS = 3


@dataclass(frozen=True, slots=True)
class EncoderLimits:
    """Bounds of a batch, a text and the queue."""

    max_texts: int
    max_batch_tokens: int
    """A longer text makes a batch by itself."""
    max_text_tokens: int
    max_requests: int
    """Requests running and waiting together."""


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """A snapshot of the encoder; counters run from its start."""

    num_steps: int = 0
    num_failed_steps: int = 0
    prompt_tokens: int = 0
    step_seconds: Buckets = field(default_factory=lambda: Buckets(STEP_SECONDS.buckets))


@dataclass(slots=True, eq=False)
class Texts:
    """What a request wants of its texts."""

    inputs: Sequence[EncoderInput]
    pooling: Pooling | None
    """Makes each text's states its vector; None: the head makes them a score, as a vector of one."""
    arrival: float
    """Seconds on the core's clock."""
    vectors: dict[int, Vector] = field(default_factory=dict)
    """By index, as far as they are computed."""


EncoderJob = Job[Texts]


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """The end of a job: all its vectors are there, or it failed."""

    job: EncoderJob
    error: PenstockError | None = None


class EncoderCore:
    """Queue and encoder joined. Not thread-safe: one thread owns it."""

    def __init__(
        self, encoder: Encoder, limits: EncoderLimits, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`clock` tells the time in seconds and is also that of arrivals and deadlines."""
        self.encoder = encoder
        self.limits = limits
        self.clock = clock
        self.pulse = Pulse()
        self._queue: JobQueue[Texts] = JobQueue(limits.max_texts, limits.max_batch_tokens)
        self._stats = EncoderStats()
        self._failed_in_row = 0

    @property
    def has_work(self) -> bool:
        """True while a job has texts left."""
        return len(self._queue) > 0

    @property
    def is_broken(self) -> bool:
        """True after MAX_FAILED_STEPS steps in a row in which not even a probe could be computed."""
        return self._failed_in_row >= MAX_FAILED_STEPS

    def add(self, job: EncoderJob) -> None:
        """Queues a job, whose texts have between 1 and `limits.max_text_tokens` tokens."""
        self._queue.add(job)

    def cancel(self, job: EncoderJob) -> None:
        """Forgets what is left of a job; does nothing if it has ended."""
        self._queue.remove(job)

    def stats(self) -> EncoderStats:
        """A snapshot; may be read from another thread."""
        return self._stats

    def step(self) -> list[EncoderOutput]:
        """Computes one batch and says which jobs it ended, late ones included.

        A text whose computation raises fails its job; the others of the batch are computed all the same.
        """
        started = self.clock()
        outputs = [EncoderOutput(job, _too_late(job)) for job in self._queue.expired(started)]
        batch = self._queue.next_batch()
        if not batch:
            return outputs
        self._failed_in_row += 1  # until something of it is computed
        is_whole = self._attempt(batch)
        outputs += self._ended(batch) if is_whole else self._isolate(batch)
        self._stats = EncoderStats(
            num_steps=self._stats.num_steps + 1,
            num_failed_steps=self._stats.num_failed_steps + (not is_whole),
            prompt_tokens=self._stats.prompt_tokens + sum(job.lengths[index] for job, index in batch),
            step_seconds=self._stats.step_seconds,
        )
        self._stats.step_seconds.observe(self.clock() - started)
        return outputs

    def _isolate(self, batch: Sequence[tuple[EncoderJob, int]]) -> list[EncoderOutput]:
        """Computes each text of a batch that raised by itself; fails the jobs of those that raise again."""
        outputs, failed = [], set[int]()
        for job, index in batch:
            if id(job) in failed:
                continue
            if self._attempt([(job, index)]):
                outputs += self._ended([(job, index)])
            else:
                failed.add(id(job))
                self._queue.remove(job)
                error = EngineError("the engine failed while computing this request; see the engine's log")
                outputs.append(EncoderOutput(job, error))
        if self._failed_in_row:
            # For nobody: it tells a broken device from a client that repeats what cannot be computed.
            probe: EncoderJob = Job([1], Texts([EncoderInput([0])], Pooling.CLS, self.clock()))
            self._attempt([(probe, 0)])
        return outputs

    @staticmethod
    def _ended(batch: Sequence[tuple[EncoderJob, int]]) -> list[EncoderOutput]:
        """The jobs of a computed batch that have all their vectors now."""
        jobs = {id(job): job for job, _ in batch}.values()
        return [EncoderOutput(job) for job in jobs if len(job.work.vectors) == len(job.lengths)]

    def _attempt(self, batch: Sequence[tuple[EncoderJob, int]]) -> bool:
        """Computes texts into their jobs; False, and a line in the log, if that raised."""
        num_tokens = sum(job.lengths[index] for job, index in batch)
        self.pulse.beat(len(batch), num_tokens)
        try:
            vectors = self._compute(batch)
        except Exception:
            logger.exception("encoder step failed", extra={"num_texts": len(batch), "num_tokens": num_tokens})
            return False
        for (job, index), vector in zip(batch, vectors, strict=True):
            job.work.vectors[index] = vector
        self._failed_in_row = 0
        return True

    @torch.inference_mode()
    def _compute(self, batch: Sequence[tuple[EncoderJob, int]]) -> list[Vector]:
        flat = build_encoder_batch([job.work.inputs[index] for job, index in batch], self.encoder.spec)
        states = self.encoder(flat)
        rows = []
        for place, index in enumerate(flat.order):
            own = states[flat.starts[place] : flat.starts[place + 1]]
            pooling = batch[index][0].work.pooling
            rows.append(self.encoder.score(own[:1]) if pooling is None else pool(own, pooling))
        ends = np.cumsum([len(row) for row in rows])
        vectors = np.split(torch.cat(rows).cpu().numpy(), ends[:-1])  # one transfer from the device
        by_index = dict(zip(flat.order, vectors, strict=True))
        return [by_index[index] for index in range(len(batch))]


def _too_late(job: EncoderJob) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"the request's time was up after {job.deadline - job.work.arrival:.3g} s, with "
        f"{len(job.work.vectors)} of {len(job.lengths)} texts computed"
    )
