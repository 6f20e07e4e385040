"""The life of one engine's process: asleep, loading, ready, and over again.

    asleep ──wake──▶ loading ──▶ ready ──unload──▶ unloading ──▶ asleep
                        │  ▲       │
                        │  └─pause─┘  its process ended by itself
                        └──▶ failed ──wake, after a pause──▶ loading

An engine that must run is never given up for failed: it is started again, and if that fails too often
everything stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from penstock.app.budget import PLANNING_BYTES, Budget, Charge
from penstock.app.child import EXIT_STUCK, EXIT_USAGE, Child, ChildSpec, local_url
from penstock.app.link import Failed, Granted, Planned, Ready
from penstock.app.restarts import LAST_BACKOFF_S, MAX_FAILED_STARTS, Restarts
from penstock.base.errors import ConfigurationError, InternalError, ModelLoadError
from penstock.fleet.orders import ModelState, Phase

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """How a load failed or an engine ended. `status` is None if there was no process to end."""

    reason: str
    status: int | None = None
    lacks_room: bool = False
    served_s: float | None = None
    """How long it served; None if it never did."""


class Keeper:
    """Keeps one engine in the phase that is wanted."""

    def __init__(
        self,
        spec: ChildSpec,
        model: str,
        budget: Budget,
        *,
        on_first_use: bool,
        load_timeout_s: float,
        stop_timeout_s: float,
        on_change: Callable[[Keeper], None],
    ) -> None:
        """`on_change` is called after each change of phase. An engine that is not `on_first_use` is loaded at
        once, kept when others need room, and must run until it is unloaded by hand.
        """
        self.spec = spec
        self.model = model
        self.on_first_use = on_first_use
        self.phase: Phase = "asleep" if on_first_use else "loading"
        self.served = asyncio.Event()
        """Set when it serves for the first time."""
        self.child: Child | None = None
        self._budget = budget
        self._load_timeout_s = load_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._on_change = on_change
        self._must_run = not on_first_use
        self._wanted, self._unloading = asyncio.Event(), asyncio.Event()
        if not on_first_use:
            self._wanted.set()
        self._restarts = Restarts()
        self._is_stopping = False
        self._failure: Failure | None = None
        self._retry_at = 0.0
        self._load_seconds: float | None = None

    def state(self, orders_seen: int) -> ModelState:
        """What the gateway is told."""
        failure = self._failure if self.phase == "failed" else None
        pause = self._retry_at - asyncio.get_running_loop().time()
        return ModelState(
            self.model,
            self.phase,
            orders_seen,
            "" if failure is None else failure.reason,
            failure is not None and failure.lacks_room,
            0 if failure is None else max(1, int(pause + 1)),
            self._load_seconds,
        )

    def wake(self) -> None:
        """Asks for the engine. Within the pause after a failed load it stays failed."""
        if self._is_stopping or self._wanted.is_set() or asyncio.get_running_loop().time() < self._retry_at:
            return
        self._wanted.set()
        self._become("loading")

    def unload(self) -> None:
        """Asks for the engine's end; only of one that is ready, which no request is passed to any more."""
        if self.phase != "ready":
            return
        self._must_run = False
        self._wanted.clear()
        self._unloading.set()
        self._become("unloading")

    def begin_stop(self) -> None:
        """From now on the engine is not started again; one that runs goes on."""
        self._is_stopping = True

    async def keep(self) -> None:
        """Keeps the engine until the stop; a process that runs then is left to the caller.

        Raises:
            ConfigurationError: an engine that must run refused its model or its settings.
            InternalError: an engine that must run keeps failing.
        """
        while not self._is_stopping:
            await self._wanted.wait()
            try:
                await self._serve(await self._load())
            except _Failed as failed:
                if not self._is_stopping:
                    await self._recover(failed.failure)

    async def _load(self) -> Child:
        """Starts the engine when there is room for it and waits until it serves."""
        self._unloading.clear()
        self._become("loading")
        began = asyncio.get_running_loop().time()
        try:
            child = await self._start()
            message = await child.link.receive()
            if not isinstance(message, Ready):
                raise _Failed(await self._end(child, message))
        except ModelLoadError as error:
            await self._discard()
            raise _Failed(Failure(error.message)) from error
        except TimeoutError as error:
            await self._discard()
            reason = "there is no room for it beside models that are in use"
            raise _Failed(Failure(reason, lacks_room=True)) from error
        finally:
            self._load_seconds = asyncio.get_running_loop().time() - began
        url = local_url(self.spec.listener).removesuffix("/v1")
        logger.info("started", child=self.spec.name, pid=child.process.pid, url=url)
        self._must_run = not self.on_first_use
        self.served.set()
        self._become("ready")
        self._load_seconds = None
        return child

    async def _start(self) -> Child:
        """A child that was admitted and loads. One that was admitted before is not queued again."""
        if not self._budget.limit_bytes or self._budget.holds(self.spec.name):
            return await self._admit(await self._spawn())
        async with self._budget.turn(self._patience_s()):
            await self._take(PLANNING_BYTES, "a process, before its model")
            child = await self._spawn()
            return await self._admit(child)

    async def _spawn(self) -> Child:
        self.child = await Child.start(self.spec)
        return self.child

    async def _admit(self, child: Child) -> Child:
        """Lets the engine load when there is room for what it announces."""
        message = await child.link.receive()
        if not isinstance(message, Planned):
            raise _Failed(await self._end(child, message))
        await self._take(message.num_bytes, message.description, child.process.pid)
        child.link.send(Granted())
        return child

    async def _take(self, num_bytes: int, description: str, pid: int | None = None) -> None:
        charge = Charge(num_bytes, is_kept=not self.on_first_use, pid=pid)
        await self._budget.take(self.spec.name, charge, description, self._patience_s())

    def _patience_s(self) -> float | None:
        return None if self._must_run else self._load_timeout_s

    async def _serve(self, child: Child) -> None:
        """Until the engine is unwanted and has ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(child.wait())
            unloading = tasks.create_task(self._unloading.wait())
            await asyncio.wait({ending, unloading}, return_when=asyncio.FIRST_COMPLETED)
            is_unwanted = unloading.done()
            ending.cancel()
            unloading.cancel()
        if is_unwanted:
            await child.stop(self._stop_timeout_s)
        child.link.close()
        if not is_unwanted:
            status = child.process.returncode
            reason = f"its process ended with status {status}"
            raise _Failed(Failure(reason, status, served_s=loop.time() - began))
        logger.info("unloaded", model=self.model)
        self._restarts = Restarts()
        self._budget.release(self.spec.name)
        if not self._wanted.is_set():
            self._become("asleep")

    async def _end(self, child: Child, message: object) -> Failure:
        """Of a child that did not say what was expected of it."""
        child.link.close()  # if it still runs it takes this as our end
        status = await child.wait()
        told = message.reason if isinstance(message, Failed) else None
        return Failure(told or f"its process ended with status {status} while it loaded", status)

    async def _discard(self) -> None:
        """Ends a child that may not load."""
        if self.child is not None and self.child.process.returncode is None:
            self.child.link.close()
            self.child.kill()
            await self.child.wait()

    async def _recover(self, failure: Failure) -> None:
        """Pauses before the next start, or gives the engine up until it is asked for again."""
        served_s = failure.served_s or 0.0
        delay = None if failure.lacks_room else self._restarts.next_delay_s(served_s)
        if self._must_run:
            self._refuse_to_go_on(failure, delay)
        if delay is not None and (self._must_run or failure.served_s is not None):
            logger.error(
                "child ended, restarting",
                child=self.spec.name,
                status=failure.status,
                was_stuck=failure.status == EXIT_STUCK,
                delay_s=delay,
            )
            self._become("loading")
            self._load_seconds = None
            await asyncio.sleep(delay)
            return
        pause = 0.0 if failure.lacks_room else LAST_BACKOFF_S if delay is None else delay
        logger.error("model not loaded", model=self.model, reason=failure.reason, pause_s=pause)
        self._budget.release(self.spec.name)
        self._retry_at = asyncio.get_running_loop().time() + pause
        self._failure = failure
        self._wanted.clear()
        self._become("failed")
        self._load_seconds = None
        if failure.lacks_room:  # told to those who waited; the model itself is as good as before
            self._become("asleep")

    def _refuse_to_go_on(self, failure: Failure, delay: float | None) -> None:
        # Later the same failure can come of what passes: no memory just now, no network.
        if not self.served.is_set() and failure.status == EXIT_USAGE:
            raise ConfigurationError(f"{self.spec.name} refused to start; its message is above")
        if not self.served.is_set() and failure.status is None:
            raise ConfigurationError(f"models.{self.model} cannot be loaded: {failure.reason}")
        if delay is None:
            raise InternalError(
                f"{self.spec.name} failed {MAX_FAILED_STARTS} times in a row; its log says why"
            )

    def _become(self, phase: Phase) -> None:
        self.phase = phase
        self._on_change(self)


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure
