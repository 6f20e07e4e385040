"""The encoder's asynchronous door: texts in, vectors or scores out. One thread owns the core.

A request is queued and answered as a whole; batches are made of the texts of all requests. What is left of a
request that nobody waits for any more is forgotten before the next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from penstock.base.errors import EngineError, PenstockError, QueueFullError
from penstock.engine.encoder import EncoderInput
from penstock.engine.encoder_core import (
    MAX_FAILED_STEPS,
    EncoderCore,
    EncoderJob,
    EncoderOutput,
    EncoderStats,
    Texts,
)
from penstock.engine.encoder_queue import Job
from penstock.engine.pooling import Pooling, Vector
from penstock.engine.retry_after import retry_after_s
from penstock.engine.watchdog import POLL_S, Watchdog

logger = logging.getLogger(__name__)

NUM_ENDS = 64  # ends of requests that the estimate of Retry-After goes by
_Command = tuple[Callable[[EncoderJob], None], EncoderJob] | None
"""Do this with a job; None: stop."""


class EncoderService:
    """Runs an :class:`EncoderCore` in a thread of its own on behalf of one event loop."""

    def __init__(self, core: EncoderCore) -> None:
        self.core = core
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._waiters: dict[EncoderJob, asyncio.Future[None]] = {}
        self._ends: deque[float] = deque(maxlen=NUM_ENDS)  # see `retry_after_s`
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = asyncio.Event()
        self.is_stuck = False
        """True once the thread was given up; it may hang for ever, so its process must end."""

    @property
    def num_requests(self) -> int:
        """Requests running and waiting."""
        return len(self._waiters)

    @property
    def refusal(self) -> str | None:
        """Why no request can be taken now, however few there are; None while the encoder serves."""
        if self.is_stuck:
            return "the engine is stuck"
        if self._is_stopped.is_set() or not self._thread.is_alive():
            return "the engine is not running"
        return None

    def start(self) -> None:
        """Starts the thread; call it once, on the event loop that will use the service."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current step; requests still open end with an EngineError.

        A thread that is stuck is left behind.
        """
        if not self._thread.is_alive():
            return
        self._commands.put(None)
        await self._is_stopped.wait()
        if not self.is_stuck:
            self._thread.join()

    async def wait_stopped(self) -> None:
        """Returns when the thread takes no more requests, because it was stopped or broke down."""
        await self._is_stopped.wait()

    async def watch(self, limit_s: float, wait: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Gives the thread up when it has done nothing new for `limit_s` seconds, and returns then.

        Requests still open end with an EngineError and new ones are refused. A limit of 0 waits for ever.
        """
        watchdog, pulse = Watchdog(limit_s), self.core.pulse
        while not watchdog.is_stuck(pulse):
            await wait(POLL_S)
        frame = sys._current_frames().get(self._thread.ident or 0)
        logger.error(
            "engine stuck",
            extra={
                "limit_s": limit_s,
                "num_texts": pulse.num_sequences,
                "num_tokens": pulse.num_tokens,
                "num_requests": len(self._waiters),
                # Without local variables: they hold texts.
                "stack": "" if frame is None else "".join(traceback.format_stack(frame)),
            },
        )
        self.is_stuck = True
        self._commands.put(None)  # should it ever come back
        self._end(EngineError(f"the engine is stuck: it did nothing for {limit_s:g} s"))

    def refuse_if_full(self) -> None:
        """Raises QueueFullError if a request could not be taken now; saves preparing it in vain."""
        limit = self.core.limits.max_requests
        if len(self._waiters) >= limit:
            raise QueueFullError(
                f"{len(self._waiters)} requests are running or queued; the limit is {limit}; try again later",
                retry_after_s=retry_after_s(self._ends, self.now()),
            )

    def now(self) -> float:
        """Seconds on the engine's clock, by which deadlines are given."""
        return self.core.clock()

    def stats(self) -> EncoderStats:
        """A snapshot of the engine's counters."""
        return self.core.stats()

    async def embed(self, texts: Sequence[Sequence[int]], pooling: Pooling, deadline: float) -> list[Vector]:
        """The vector of each text, given as token ids, in their order; not normalised.

        Cancel it to have what is left forgotten.

        Raises:
            QueueFullError: running and waiting requests are at their bound.
            DeadlineExceededError: `deadline`, in seconds on the clock of :meth:`now`, has passed.
            EngineError: the encoder failed on it, or its thread is not running.
        """
        return await self._compute([EncoderInput(tokens) for tokens in texts], pooling, deadline)

    async def score(self, pairs: Sequence[EncoderInput], deadline: float) -> list[float]:
        """A cross-encoder's score of each pair, before the sigmoid. Raises as :meth:`embed` does."""
        return [float(vector[0]) for vector in await self._compute(pairs, None, deadline)]

    async def _compute(
        self, inputs: Sequence[EncoderInput], pooling: Pooling | None, deadline: float
    ) -> list[Vector]:
        if (refusal := self.refusal) is not None:
            raise EngineError(refusal)
        self.refuse_if_full()
        lengths = [len(one.tokens) for one in inputs]
        assert 0 < min(lengths) <= max(lengths) <= self.core.limits.max_text_tokens
        assert self._loop is not None
        if not self._waiters:  # what ended before was followed by idleness, which says nothing
            self._ends.clear()
            self._ends.append(self.now())
        job: EncoderJob = Job(lengths, Texts(inputs, pooling, self.now()), deadline)
        self._waiters[job] = self._loop.create_future()
        self._commands.put((self.core.add, job))
        try:
            await self._waiters[job]
        finally:
            del self._waiters[job]
            self._ends.append(self.now())
            self._commands.put((self.core.cancel, job))
        return [job.work.vectors[index] for index in range(len(lengths))]

    def _run(self) -> None:
        """The thread: commands, then a step, until told to stop; sleeps when there is no work."""
        error = EngineError("the engine was stopped before this request ended")
        try:
            while self._obey():
                if outputs := self.core.step():
                    self._tell(self._dispatch, outputs)
                if self.core.is_broken:
                    raise EngineError(f"{MAX_FAILED_STEPS} steps in a row failed")
        except Exception:
            logger.exception("engine thread failed")
            error = EngineError("the engine broke down; see the engine's log")
        finally:
            self.core.pulse.rest()
            with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
                self._tell(self._end, error)

    def _obey(self) -> bool:
        """Carries out all commands, waiting for one if there is no work; False means stop."""
        while True:
            must_wait = not self.core.has_work
            if must_wait:
                self.core.pulse.rest()
            try:
                command = self._commands.get(block=must_wait)
            except queue.Empty:
                return True
            self.core.pulse.beat()
            if command is None:
                return False
            do, job = command
            do(job)

    def _tell(self, hear: Callable[..., object], *words: object) -> None:
        """Calls `hear` on the event loop. Raises RuntimeError if that was closed."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(hear, *words)

    def _dispatch(self, outputs: list[EncoderOutput]) -> None:
        for output in outputs:
            self._settle(self._waiters.get(output.job), output.error)

    def _end(self, error: EngineError) -> None:
        for waiter in self._waiters.values():
            self._settle(waiter, error)
        self._is_stopped.set()

    @staticmethod
    def _settle(waiter: asyncio.Future[None] | None, error: PenstockError | None) -> None:
        if waiter is None or waiter.done():  # who asked has left
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
