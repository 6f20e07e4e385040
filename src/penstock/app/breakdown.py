"""The end of a replica's process whose engine no longer computes: clients are told, then it ends.

A thread that hangs cannot be ended, its process can. Three guards, from the inside to the outside: the
engine's thread says itself that it broke down; the watchdog, on the event loop, finds a thread that is stuck;
a timer of the interpreter, which needs neither loop nor lock, ends a process in which nothing moves any more.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from penstock.app.child import EXIT_STUCK
from penstock.asgi.drain import Drain
from penstock.asgi.server import StopRequest
from penstock.engine.watchdog import POLL_S

logger = structlog.get_logger(__name__)

# For telling clients: their errors are ready to be sent, and one that does not read is not waited for.
LAST_WORDS_S = 5.0


class Guarded(Protocol):
    """What the guards need of an engine's service, whatever it computes."""

    async def wait_stopped(self) -> None:
        """Returns when it takes no more requests, because it was stopped or broke down."""
        ...

    async def watch(self, limit_s: float, wait: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Gives the engine's thread up when it did nothing new for `limit_s` seconds, and returns then."""
        ...


async def stop_when_broken(service: Guarded, stop: StopRequest) -> None:
    """Asks to stop when the engine takes no more requests, so that its process ends or is started anew."""
    await service.wait_stopped()
    stop.ask()


async def leave_when_stuck(
    service: Guarded,
    drain: Drain,
    step_timeout_s: float,
    leave: Callable[[int], object],
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    last_words_s: float = LAST_WORDS_S,
) -> None:
    """Calls `leave` with EXIT_STUCK when a step has taken longer than `step_timeout_s` and its clients know.

    `leave` must not wait for threads: os._exit, in a real process.
    """
    await service.watch(step_timeout_s, wait)
    drain.begin()
    is_told = await drain.wait_idle(last_words_s)
    logger.error("ending with a stuck engine, to be restarted", status=EXIT_STUCK, all_clients_told=is_told)
    leave(EXIT_STUCK)


async def leave_when_frozen(step_timeout_s: float) -> None:
    """Ends the process, with every thread's stack on standard error, when this event loop stands still.

    That is how a thread looks from here that hangs while it holds the interpreter's lock. Cancel it to stop.
    """
    if not step_timeout_s:
        return
    try:
        while True:
            # Started anew at each turn, so it runs out only if there are no more turns. Exit status 1.
            faulthandler.dump_traceback_later(step_timeout_s + POLL_S, exit=True)
            await asyncio.sleep(POLL_S)
    finally:
        faulthandler.cancel_dump_traceback_later()
