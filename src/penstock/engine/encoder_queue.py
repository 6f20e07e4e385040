"""Which texts an encoder computes next. No torch, no threads.

A job is one request's texts. Each batch takes from every job in turn, so that a job of two thousand texts
does not keep a job of one waiting; within a job the texts go from the longest to the shortest, so that texts
of one batch are of similar length.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """Texts that are wanted together."""

    lengths: Sequence[int]
    """In tokens."""
    work: T
    """What is to be done with them; the queue does not look at it."""
    deadline: float = math.inf
    """Seconds on the engine's clock."""
    left: list[int] = field(init=False)
    """Indices of the texts that are not computed yet; the last one is next."""

    def __post_init__(self) -> None:
        self.left = sorted(range(len(self.lengths)), key=lambda index: self.lengths[index])


class JobQueue(Generic[T]):
    """The jobs that have texts left. Not thread-safe; bounded by whoever adds."""

    def __init__(self, max_texts: int, max_tokens: int) -> None:
        """Bounds of a batch; a text that is longer than `max_tokens` makes a batch by itself."""
        self._max_texts = max_texts
        self._max_tokens = max_tokens
        self._jobs: deque[Job[T]] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job[T]) -> None:
        """Queues a job."""
        self._jobs.append(job)

    def remove(self, job: Job[T]) -> None:
        """Forgets a job; does nothing if it is not here any more."""
        if job in self._jobs:
            self._jobs.remove(job)

    def expired(self, now: float) -> list[Job[T]]:
        """Takes out and returns the jobs whose deadline has passed."""
        late = [job for job in self._jobs if job.deadline <= now]
        for job in late:
            self._jobs.remove(job)
        return late

    def next_batch(self) -> list[tuple[Job[T], int]]:
        """The next texts, by job and index; empty if there are none.

        Each job gives one text in turn as long as its next one fits. The job that began this batch is behind
        the others in the next one, so each gets at least one text in as many batches as there are jobs.
        """
        batch: list[tuple[Job[T], int]] = []
        room = self._max_tokens
        turn = deque(self._jobs)
        while turn and len(batch) < self._max_texts:
            job = turn.popleft()
            length = job.lengths[job.left[-1]]
            if batch and length > room:
                continue
            batch.append((job, job.left.pop()))
            room -= length
            if job.left:
                turn.append(job)
        if self._jobs:
            self._jobs.rotate(-1)
        self._jobs = deque(job for job in self._jobs if job.left)
        return batch
