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
import queue
import threading
from collections.abc import AsyncIterator
from collections.abc import Sequence as SequenceOf
from types import TracebackType
from typing import Self

from penstock.base.errors import ContextLengthError, EngineError, QueueFullError
from penstock.engine.core import MAX_FAILED_STEPS, EngineCore, EngineStats
from penstock.engine.sequence import FinishReason, Output, SamplingParams, Sequence

logger = logging.getLogger(__name__)

# Told to clients that find the queue full; about the time in which a place becomes free.
RETRY_AFTER_S = 1
_Command = Sequence | int | None  # add a sequence, cancel an id, stop


class TokenStream:
    """The tokens of one request. Iterate it once; the last output has `finish` set."""

    def __init__(self, service: EngineService, sequence_id: int) -> None:
        self.sequence_id = sequence_id
        self._service = service
        # Bounded by the request itself: at most max_tokens outputs and one end.
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()
        self.is_finished = False

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
        self._ids = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = asyncio.Event()

    @property
    def num_requests(self) -> int:
        """Requests running and waiting."""
        return len(self._streams)

    @property
    def is_alive(self) -> bool:
        """True while the engine's thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread; call it once, on the event loop that will use the service."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current step; requests still open end with an EngineError."""
        if not self._thread.is_alive():
            return
        self._commands.put(None)
        await self._is_stopped.wait()
        self._thread.join()

    def refuse_if_full(self) -> None:
        """Raises QueueFullError if a request could not be submitted now; saves preparing one in vain."""
        if len(self._streams) >= self.max_requests:
            raise QueueFullError(
                f"{len(self._streams)} requests are running or queued, which is the limit; try again later",
                retry_after_s=RETRY_AFTER_S,
            )

    async def wait_stopped(self) -> None:
        """Returns when the engine's thread takes no more requests, because it was stopped or broke down."""
        await self._is_stopped.wait()

    def submit(self, tokens: SequenceOf[int], sampling: SamplingParams) -> TokenStream:
        """Queues a request; use the stream in `async with`.

        Raises:
            QueueFullError: running and waiting requests are at their bound.
            ContextLengthError: the prompt leaves no room for one token.
            EngineError: the engine's thread is not running.
        """
        # Both: the streams are closed a moment before the thread is gone, and nobody would end one made then.
        if self._is_stopped.is_set() or not self.is_alive:
            raise EngineError("the engine is not running")
        self.refuse_if_full()
        if not 0 < len(tokens) < self.core.limits.max_model_len:
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens; the context has {self.core.limits.max_model_len} "
                "and must hold the prompt and at least one more"
            )
        sequence = Sequence(next(self._ids), list(tokens), sampling)
        stream = self._streams[sequence.id] = TokenStream(self, sequence.id)
        self._commands.put(sequence)
        return stream

    def cancel(self, sequence_id: int) -> None:
        """Ends a request before the next step; its stream gets a last output."""
        self._commands.put(sequence_id)

    def stats(self) -> EngineStats:
        """A snapshot of the engine's counters."""
        return self.core.stats()

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
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
                self._loop.call_soon_threadsafe(self._end, error)

    def _obey(self) -> bool:
        """Carries out all commands, waiting for one if there is no work; False means stop."""
        while True:
            try:
                command = self._commands.get(block=not self.core.has_work)
            except queue.Empty:
                return True
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
        for output in outputs:
            stream = self._streams[output.sequence_id]
            if output.finish is not None:
                del self._streams[output.sequence_id]
            stream.deliver(output)

    def _end(self, error: EngineError) -> None:
        for stream in self._streams.values():
            stream.deliver(Output(stream.sequence_id, finish=FinishReason.ERROR, error=error))
        self._streams.clear()
        self._is_stopped.set()
