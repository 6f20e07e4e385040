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
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from collections.abc import Sequence as SequenceOf
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

from penstock.base.errors import ContextLengthError, EngineError, InvalidRequestError, QueueFullError
from penstock.engine.adapter import Adapter
from penstock.engine.core import MAX_FAILED_STEPS, EngineCore, EngineStats
from penstock.engine.readout import Readout
from penstock.engine.retry_after import retry_after_s
from penstock.engine.sampling import Constraint, SamplingParams
from penstock.engine.sequence import FinishReason, Output, Priority, Sequence
from penstock.engine.watchdog import POLL_S, Watchdog

logger = logging.getLogger(__name__)

NUM_ENDS = 64  # ends of requests that the estimate of Retry-After goes by
# Add a sequence with its siblings, cancel an id, do this between two steps, stop.
_Command = tuple[Sequence, ...] | int | Callable[[EngineCore], None] | None
_T = TypeVar("_T")


class Options(TypedDict, total=False):
    """What a request may say beside its prompt and its sampling."""

    priority: Priority
    deadline: float
    """Seconds on the clock of :meth:`EngineService.now`; then it ends with a DeadlineExceededError."""
    cache_salt: str
    """Cached prefixes are shared between requests of the same one."""
    num_resumed: int
    """The last tokens of the prompt that are answer: another engine has generated them."""
    readout: Readout
    adapter: Adapter | None
    """What it is computed with beside the model."""


class TokenStream:
    """The tokens of one request. Iterate it once; the last output has `finish` set."""

    def __init__(self, service: EngineService, sequence: Sequence) -> None:
        self.sequence_id = sequence.id
        self.sequence = sequence
        """The engine's; for others to read, which holds once it has ended."""
        self._service = service
        # Bounded by the request itself: at most max_tokens outputs and one end.
        self._outputs: asyncio.Queue[Output] = asyncio.Queue()
        self.is_finished = False

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache; holds from the first output on."""
        return self.sequence.num_cached_tokens or 0

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
        self._calls: set[asyncio.Future[Any]] = set()
        self._ends: deque[float] = deque(maxlen=NUM_ENDS)  # see `retry_after_s`
        self._ids = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = asyncio.Event()
        self.after_work: Callable[[], None] | None = None
        """Called on the engine's thread after each step and each piece of work; set before the start."""
        self.num_refused = 0
        """Requests that the bound has kept out."""
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

    def refuse_if_full(self, count: int = 1) -> None:
        """Raises if `count` requests could not be submitted now, as one: saves preparing them in vain.

        Raises:
            QueueFullError: running and waiting requests are at their bound.
            InvalidRequestError: it is too many ever.
        """
        if count > self.max_requests:
            raise InvalidRequestError(
                f"{count} answers at once are more than the {self.max_requests} that may run and wait"
            )
        if len(self._streams) + count > self.max_requests:
            self.num_refused += 1
            most = f", and this one asks for {count} answers" if count > 1 else ""
            raise QueueFullError(
                f"{len(self._streams)} requests are running or queued{most}; the limit is "
                f"{self.max_requests}. Try again later",
                retry_after_s=retry_after_s(self._ends, self.now()),
            )

    async def wait_stopped(self) -> None:
        """Returns when the engine's thread takes no more requests, because it was stopped or broke down."""
        await self._is_stopped.wait()

    def now(self) -> float:
        """Seconds on the engine's clock, by which deadlines are given."""
        return self.core.clock()

    def submit(
        self, tokens: SequenceOf[int], sampling: SamplingParams, **options: Unpack[Options]
    ) -> TokenStream:
        """Queues a request; see :meth:`submit_group`."""
        return self.submit_group(tokens, [sampling], **options)[0]

    def submit_group(
        self,
        tokens: SequenceOf[int],
        samplings: SequenceOf[SamplingParams],
        *,
        new_constraint: Callable[[], Constraint] | None = None,
        **options: Unpack[Options],
    ) -> list[TokenStream]:
        """Queues one request for every entry of `samplings`, all of the same prompt, which is computed once.

        Use each stream in `async with`. `new_constraint` makes the state of a grammar that answers follow.

        Raises:
            QueueFullError: running and waiting requests are at their bound.
            ContextLengthError: the prompt leaves no room for what is asked for.
            EngineError: the engine's thread is not running.
        """
        if (refusal := self.refusal) is not None:
            raise EngineError(refusal)
        self.refuse_if_full(len(samplings))
        room = self.core.limits.max_model_len - len(tokens)
        if not tokens or room < min(1, max(sampling.max_tokens for sampling in samplings)):
            raise ContextLengthError(
                f"the prompt has {len(tokens)} tokens; the context has {self.core.limits.max_model_len} "
                "and must hold the prompt and at least one more"
            )
        if not self._streams:  # what ended before was followed by idleness, which says nothing
            self._ends.clear()
            self._ends.append(self.now())
        sequences = tuple(
            Sequence(
                next(self._ids),
                list(tokens),
                sampling,
                arrival=self.now(),
                constraint=None if new_constraint is None else new_constraint(),
                **options,
            )
            for sampling in samplings
        )
        streams = [TokenStream(self, sequence) for sequence in sequences]
        self._streams |= {stream.sequence_id: stream for stream in streams}
        self._commands.put(sequences)
        return streams

    async def call(self, work: Callable[[EngineCore], _T]) -> _T:
        """Runs `work` on the engine's thread between two steps; its result.

        Raises:
            EngineError: the engine's thread is not running, or ends first.
            Exception: what `work` raised.
        """
        if (refusal := self.refusal) is not None:
            raise EngineError(refusal)
        assert self._loop is not None
        done: asyncio.Future[_T] = self._loop.create_future()
        self._calls.add(done)
        done.add_done_callback(self._calls.discard)

        def run(core: EngineCore) -> None:
            try:
                outcome: tuple[_T | None, Exception | None] = work(core), None
            except Exception as error:  # noqa: BLE001 (it is the caller's)
                outcome = None, error
            self.tell(_settle, done, *outcome)

        self._commands.put(run)
        return await done

    async def move(self, stream: TokenStream) -> Sequence | None:
        """Ends a request that is to go on in another engine, its stream too; None if it has ended already."""
        sequence = await self.call(lambda core: core.move(stream.sequence_id))
        if sequence is not None:
            self._dispatch([Output(sequence.id, finish=FinishReason.MOVED)])
        return sequence

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
                if self.after_work is not None:
                    self.after_work()
                if self.core.is_broken:
                    raise EngineError(f"{MAX_FAILED_STEPS} steps in a row failed")
        except Exception:
            logger.exception("engine thread failed")
            error = EngineError("the engine broke down; see the engine's log")
        finally:
            self.core.pulse.rest()
            with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
                self.tell(self._end, error)

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
            if isinstance(command, tuple):
                self.core.add(command[0], command[1:])
            elif callable(command):
                command(self.core)
                if self.after_work is not None:
                    self.after_work()
            elif (output := self.core.cancel(command)) is not None:
                self._post([output])

    def _post(self, outputs: list[Output]) -> None:
        self.tell(self._dispatch, outputs)

    def tell(self, hear: Callable[..., object], *words: object) -> None:
        """Calls `hear` on the event loop, from the engine's thread. Raises RuntimeError if it was closed."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(hear, *words)

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
        for call in tuple(self._calls):
            _settle(call, None, error)
        self._is_stopped.set()


def _settle(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.done():  # who asked has left
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
