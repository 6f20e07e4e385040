"""The engine's asynchronous door: submit, stream, cancel. One thread owns the core.

Commands go to the thread through a queue and take effect between two steps; outputs come back to the
event loop in one call per step. A :class:`TokenStream` owns its request: leaving its `async with` block
cancels what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from collections.abc import Sequence as SequenceOf
from types import TracebackType
from typing import Self

from penstock.base.errors import ContextLengthError, EngineError, QueueFullError
from penstock.engine.core import MAX_FAILED_STEPS, EngineCore, EngineStats
from penstock.engine.retry_after import retry_after_s
from penstock.engine.sequence import FinishReason, Output, Priority, SamplingParams, Sequence
from penstock.engine.watchdog import POLL_S, Watchdog

logger = logging.getLogger(__name__)

NUM_ENDS = 64  # ends of requests that the estimate of Retry-After goes by
_Command = Sequence | int | None  # add a sequence, cancel an id, stop


class TokenStream:
    """The tokens of one request. Iterate it once; the last output has `finish` set."""

    def __init__(self, service: EngineService, sequence: Sequence) -> None:
        self.sequence_id = sequence.id
        self._sequence = sequence
        self._service = service
        # Bounded by the request itself: at most max_tokens outputs and one end.
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()
        self.is_finished = False

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache; holds from the first output on."""
        return self._sequence.num_cached_tokens or 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while not self.is_finished:
            output = await self._outputs.get()
            self.is_finished = output.finish is not None
            yield output

    def cancel(self) -> None:
        """Asks the engine to end the request before its next step; does nothing once it has ended."""
        if not self.is_finished:
            self._service.cancel(self.sequence_id)

    def deliver(self, output: Output) -> None:
        """Called by the service on the event loop."""
        self._outputs.put_nowait(output)


class EngineService:
    """Runs an :class:`EngineCore` in a thread of its own on behalf of one event loop."""

    def __init__(self, core: EngineCore, max_requests: int) -> None:
        """`max_requests` bounds running and waiting requests together."""
        self.core = core
        self.max_requests = max_requests
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._streams: dict[int, TokenStream] = {}
        self._ends: deque[float] = deque(maxlen=NUM_ENDS)  # see `retry_after_s`
        self._ids = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = asyncio.Event()
        self.is_stuck = False
        """True once the thread was given up; it may hang for ever, so its process must end."""

    @property
    def num_requests(self) -> int:
        """Requests running and waiting."""
        return len(self._streams)

    @property
    def is_alive(self) -> bool:
        """True while the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def refusal(self) -> str | None:
        """Why no request can be taken now, however few there are; None while the engine serves."""
        if self.is_stuck:
            return "the engine is stuck"
        # Both: the streams are closed a moment before the thread is gone, and nobody would end one made then.
        if self._is_stopped.is_set() or not self.is_alive:
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

    async def watch(self, limit_s: float, wait: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Gives the thread up when it has done nothing new for `limit_s` seconds, and returns then.

        Requests still open end with an EngineError and new ones are refused. A limit of 0 waits for ever.
        """
        watchdog = Watchdog(limit_s)
        while not watchdog.is_stuck(self.core.pulse):
            await wait(POLL_S)
        pulse = self.core.pulse
        logger.error(
            "engine stuck",
            extra={
                "limit_s": limit_s,
                "num_sequences": pulse.num_sequences,
                "num_tokens": pulse.num_tokens,
                "num_requests": len(self._streams),
                "stack": self._stack(),
            },
        )
        self.is_stuck = True
        self._commands.put(None)  # should it ever come back
        self._end(EngineError(f"the engine is stuck: it did nothing for {limit_s:g} s"))

    def refuse_if_full(self) -> None:
        """Raises QueueFullError if a request could not be submitted now; saves preparing one in vain."""
        if len(self._streams) >= self.max_requests:
            raise QueueFullError(
                f"{len(self._streams)} requests are running or queued, which is the limit; try again later",
                retry_after_s=retry_after_s(self._ends, self.now()),
            )

    async def wait_stopped(self) -> None:
        """Returns when the engine's thread takes no more requests, because it was stopped or broke down."""
        await self._is_stopped.wait()

    def now(self) -> float:
        """Seconds on the engine's clock, by which deadlines are given."""
        return self.core.clock()

    def submit(
        self,
        tokens: SequenceOf[int],
        sampling: SamplingParams,
        *,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        cache_salt: str = "",
    ) -> TokenStream:
        """Queues a request; use the stream in `async with`.

        At `deadline`, in seconds on the clock of :meth:`now`, it ends with a DeadlineExceededError. Cached
        prefixes are shared between requests of the same `cache_salt`.

        Raises:
            QueueFullError: running and waiting requests are at their bound.
            ContextLengthError: the prompt leaves no room for one token.
            EngineError: the engine's thread is not running.
        """
        if (refusal := self.refusal) is not None:
            raise EngineError(refusal)
        self.refuse_if_full()
        if not 0 < len(tokens) < self.core.limits.max_model_len:
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens; the context has {self.core.limits.max_model_len} "
                "and must hold the prompt and at least one more"
            )
        if not self._streams:  # what ended before was followed by idleness, which says nothing
            self._ends.clear()
            self._ends.append(self.now())
        sequence = Sequence(
            next(self._ids),
            list(tokens),
            sampling,
            priority=priority,
            arrival=self.now(),
            deadline=deadline,
            cache_salt=cache_salt,
        )
        stream = self._streams[sequence.id] = TokenStream(self, sequence)
        self._commands.put(sequence)
        return stream

    def cancel(self, sequence_id: int) -> None:
        """Ends a request before the next step; its stream gets a last output."""
        self._commands.put(sequence_id)

    def stats(self) -> EngineStats:
        """A snapshot of the engine's counters."""
        return self.core.stats()

    def _stack(self) -> str:
        """Where the thread is, without local variables: they hold prompts."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "" if frame is None else "".join(traceback.format_stack(frame))

    def _run(self) -> None:
        """The engine's thread: commands, then a step, until told to stop; sleeps when there is no work."""
        error = EngineError("the engine was stopped before this request ended")
        try:
            while self._obey():
                outputs = self.core.step()
                if outputs:
                    self._post(outputs)
                if self.core.is_broken:
                    raise EngineError(f"{MAX_FAILED_STEPS} steps in a row failed")
        except Exception:
            logger.exception("engine thread failed")
            error = EngineError("the engine broke down; see the engine's log")
        finally:
            self.core.pulse.rest()
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
                self._loop.call_soon_threadsafe(self._end, error)

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
            if isinstance(command, Sequence):
                self.core.add(command)
            elif (output := self.core.cancel(command)) is not None:
                self._post([output])

    def _post(self, outputs: list[Output]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._dispatch, outputs)

    def _dispatch(self, outputs: list[Output]) -> None:
        if self.is_stuck:  # its streams have ended; it was only slow, but nobody listens any more
            return
        for output in outputs:
            stream = self._streams[output.sequence_id]
            if output.finish is not None:
                del self._streams[output.sequence_id]
                self._ends.append(self.now())
            stream.deliver(output)

    def _end(self, error: EngineError) -> None:
        for stream in self._streams.values():
            stream.deliver(Output(stream.sequence_id, finish=FinishReason.ERROR, error=error))
        self._streams.clear()
        self._is_stopped.set()
