"""Starts, watches and stops the processes of `penstock up`: one engine per local replica, one gateway.

The supervisor binds every listening socket itself and hands it to the child. A port in use is therefore known
before anything starts, a restarted child has its old address, and connections made meanwhile wait in the
socket's queue instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from penstock.app.child import Child, ChildSpec
from penstock.asgi.server import CANCEL_GRACE_S, StopRequest
from penstock.base.errors import ConfigurationError, InternalError

logger = structlog.get_logger(__name__)

EXIT_USAGE = 2
# How a replica ends whose engine was stuck (EX_SOFTWARE of sysexits.h).
EXIT_STUCK = 70
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
# A child that served this long has recovered: its next failure counts as the first. Loading does not count,
# or a model that takes a minute to load and then fails would be loaded for ever.
STABLE_AFTER_S = 60.0
# A child may fail this many times in a row before everything stops.
MAX_FAILED_STARTS = 5


@dataclass(slots=True)
class Restarts:
    """Restart policy of one child: a pure function of how its lives went."""

    num_failures: int = 0

    def next_delay_s(self, served_s: float) -> float | None:
        """Seconds to wait before the next start, after `served_s` of being ready; None to give up."""
        self.num_failures = 1 if served_s >= STABLE_AFTER_S else self.num_failures + 1
        if self.num_failures > MAX_FAILED_STARTS:
            return None
        return float(min(FIRST_BACKOFF_S * 2 ** (self.num_failures - 1), LAST_BACKOFF_S))


class Supervisor:
    """Owns the children, from start to the last one's end."""

    def __init__(
        self, engines: Sequence[ChildSpec], gateway: ChildSpec, drain_timeout_s: float, stop: StopRequest
    ) -> None:
        self._engines = engines
        self._gateway = gateway
        self._drain_timeout_s = drain_timeout_s
        self._stop = stop
        self._children: dict[str, Child] = {}
        self._is_stopping = False
        self._served = {spec.name: asyncio.Event() for spec in (*engines, gateway)}

    async def run(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Runs until asked to stop; awaits `on_ready` beside that, once, when every child first serves.

        Raises:
            ConfigurationError: a child refused its arguments.
            InternalError: a child keeps failing.
        """
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = [tasks.create_task(self._keep(spec)) for spec in (*self._engines, self._gateway)]
                keeping.append(tasks.create_task(self._tell_ready(on_ready)))
                await self._stop.asked.wait()
                self._is_stopping = True
                await self._stop_all(tasks)
                for task in keeping:
                    task.cancel()
        except* (ConfigurationError, InternalError) as group:
            failure = group.exceptions[0]
        finally:
            for child in self._children.values():
                child.kill()
                with contextlib.suppress(ProcessLookupError):
                    await child.wait()
        if failure is not None:
            raise failure

    async def _tell_ready(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        for served in self._served.values():
            await served.wait()
        await on_ready()

    async def _keep(self, spec: ChildSpec) -> None:
        """Keeps one child alive."""
        restarts = Restarts()
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            ready_at: float | None = None
            child = self._children[spec.name] = await Child.start(spec)
            try:
                if await child.wait_ready():
                    ready_at = loop.time()
                    url = local_url(spec.listener).removesuffix("/v1")
                    logger.info("started", child=spec.name, pid=child.process.pid, url=url)
                    self._served[spec.name].set()
                status = await child.wait()
            finally:
                child.close_link()
            if self._is_stopping:
                return
            # Later the same status can come of what passes: no memory just now, no network.
            if status == EXIT_USAGE and not self._served[spec.name].is_set():
                raise ConfigurationError(f"{spec.name} refused to start; its message is above")
            delay = restarts.next_delay_s(0.0 if ready_at is None else loop.time() - ready_at)
            if delay is None:
                raise InternalError(
                    f"{spec.name} failed {MAX_FAILED_STARTS} times in a row; its log says why"
                )
            logger.error(
                "child ended, restarting",
                child=spec.name,
                status=status,
                was_stuck=status == EXIT_STUCK,
                delay_s=delay,
            )
            await asyncio.sleep(delay)

    async def _stop_all(self, tasks: asyncio.TaskGroup) -> None:
        """The gateway drains first, since its running answers need the engines; then the engines end."""
        insist = tasks.create_task(self._insist())
        limit = self._drain_timeout_s + CANCEL_GRACE_S + 5
        if (gateway := self._children.get(self._gateway.name)) is not None:
            await gateway.stop(limit)
        self._gateway.listener.close()  # nobody accepts any more: refuse clients instead of letting them hang
        engines = [self._children[spec.name] for spec in self._engines if spec.name in self._children]
        await asyncio.gather(*(engine.stop(limit) for engine in engines))
        insist.cancel()

    async def _insist(self) -> None:
        await self._stop.insisted.wait()
        for child in self._children.values():
            child.kill()


def local_url(listener: socket.socket) -> str:
    """The API root of a child that serves on `listener`."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
