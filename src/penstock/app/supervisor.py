"""Starts, watches and stops the processes of `penstock up`: one engine per local replica, one gateway.

The supervisor binds every listening socket itself and hands it to the child. A port in use is therefore known
before anything starts, a restarted child has its old address, and connections made meanwhile wait in the
socket's queue instead of being refused. It alone owns processes: the gateway asks it for the engines of
models that sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from penstock.app.budget import MIB, Budget
from penstock.app.child import EXIT_USAGE, Child, ChildSpec, local_url
from penstock.app.keeper import Keeper
from penstock.app.link import FromChild, Ready
from penstock.app.restarts import MAX_FAILED_STARTS, Restarts
from penstock.asgi.server import CANCEL_GRACE_S, StopRequest
from penstock.base.errors import ConfigurationError, InternalError
from penstock.fleet.orders import MakeRoom, Message, Roster, Unload, Wake
from penstock.fleet.settings import EnginesSettings

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """An engine to own."""

    spec: ChildSpec
    model: str
    on_first_use: bool
    has_siblings: bool
    """True if its model has other replicas: it is then never put to sleep."""


class Supervisor:
    """Owns the children, from start to the last one's end."""

    def __init__(
        self,
        engines: Sequence[LocalEngine],
        gateway: ChildSpec,
        settings: EnginesSettings,
        drain_timeout_s: float,
        stop: StopRequest,
    ) -> None:
        self._gateway_spec = gateway
        self._stop = stop
        self._stop_timeout_s = drain_timeout_s + CANCEL_GRACE_S + 5
        self._budget = Budget(settings.memory_mb * MIB, self._ask_for_room)
        self._keepers = [
            Keeper(
                engine.spec,
                engine.model,
                self._budget,
                on_first_use=engine.on_first_use,
                load_timeout_s=settings.load_timeout_s,
                stop_timeout_s=self._stop_timeout_s,
                on_change=self._tell_state,
            )
            for engine in engines
        ]
        alone = {engine.spec.name for engine in engines if not engine.has_siblings}
        self._by_model = {keeper.model: keeper for keeper in self._keepers if keeper.spec.name in alone}
        self._gateway: Child | None = None
        self._gateway_served = asyncio.Event()
        self._orders_seen = 0
        self._is_stopping = False

    async def run(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Runs until asked to stop; awaits `on_ready` beside that, once, when the gateway and every engine
        that is loaded at start first serve.

        Raises:
            ConfigurationError: a child refused its arguments, or the engines do not fit into the memory.
            InternalError: a child keeps failing.
        """
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = [tasks.create_task(keeper.keep()) for keeper in self._keepers]
                keeping += [tasks.create_task(self._keep_gateway())]
                keeping += [tasks.create_task(self._tell_ready(on_ready))]
                await self._stop.asked.wait()
                self._is_stopping = True
                for keeper in self._keepers:
                    keeper.begin_stop()
                await self._stop_all(tasks)
                for task in keeping:
                    task.cancel()
        except* (ConfigurationError, InternalError) as group:
            failure = group.exceptions[0]
        finally:
            for child in self._children():
                child.kill()
                with contextlib.suppress(ProcessLookupError):
                    await child.wait()
        if failure is not None:
            raise failure

    def _children(self) -> Iterable[Child]:
        engines = [keeper.child for keeper in self._keepers]
        return [child for child in (*engines, self._gateway) if child is not None]

    async def _tell_ready(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        for keeper in self._keepers:
            if not keeper.on_first_use:
                await keeper.served.wait()
        await self._gateway_served.wait()
        await on_ready()

    async def _keep_gateway(self) -> None:
        """Keeps the gateway alive and does what it orders."""
        restarts = Restarts()
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            child = self._gateway = await Child.start(self._gateway_spec)
            self._introduce()
            ready_at: float | None = None
            try:
                while (message := await child.link.receive()) is not None:
                    if isinstance(message, Ready):
                        ready_at = loop.time()
                        self._gateway_served.set()
                        url = local_url(self._gateway_spec.listener).removesuffix("/v1")
                        logger.info("started", child=child.spec.name, pid=child.process.pid, url=url)
                    self._obey(message)
            finally:
                child.link.close()
            status = await child.wait()
            if self._is_stopping:
                return
            if status == EXIT_USAGE and not self._gateway_served.is_set():
                raise ConfigurationError("gateway refused to start; its message is above")
            delay = restarts.next_delay_s(0.0 if ready_at is None else loop.time() - ready_at)
            if delay is None:
                raise InternalError(f"gateway failed {MAX_FAILED_STARTS} times in a row; its log says why")
            logger.error("child ended, restarting", child="gateway", status=status, delay_s=delay)
            await asyncio.sleep(delay)

    def _introduce(self) -> None:
        """Tells a new gateway which models there are; what its predecessor ordered has no one to answer."""
        self._orders_seen = 0
        states = [keeper.state(0) for keeper in self._by_model.values()]
        on_first_use = [keeper.model for keeper in self._keepers if keeper.on_first_use]
        self._tell(Roster(states, on_first_use))
        self._budget.nudge()

    def _obey(self, message: FromChild) -> None:
        if not isinstance(message, Wake | Unload):
            return
        self._orders_seen += 1
        keeper = self._by_model[message.model]
        if isinstance(message, Wake):
            keeper.wake()
        else:
            keeper.unload()
        self._tell_state(keeper)  # every order is answered, also one that changed nothing

    def _tell_state(self, keeper: Keeper) -> None:
        if keeper.phase == "ready":
            self._budget.nudge()  # one more that may make room
        if self._by_model.get(keeper.model) is keeper:
            self._tell(keeper.state(self._orders_seen))

    def _ask_for_room(self, engines: Sequence[str]) -> None:
        """One at a time: while an engine ends, nobody else is asked to."""
        keepers = [keeper for keeper in self._keepers if keeper.spec.name in engines]
        if any(keeper.phase == "unloading" for keeper in self._keepers):
            keepers = []
        self._tell(MakeRoom([keeper.model for keeper in keepers], self._orders_seen))

    def _tell(self, message: Message) -> None:
        if self._gateway is not None:
            self._gateway.link.send(message)

    async def _stop_all(self, tasks: asyncio.TaskGroup) -> None:
        """The gateway drains first, since its running answers need the engines; then the engines end."""
        insist = tasks.create_task(self._insist())
        if self._gateway is not None:
            await self._gateway.stop(self._stop_timeout_s)
        # Nobody accepts any more: refuse clients instead of letting them hang.
        self._gateway_spec.listener.close()
        engines = [keeper.child for keeper in self._keepers if keeper.child is not None]
        await asyncio.gather(*(engine.stop(self._stop_timeout_s) for engine in engines))
        insist.cancel()

    async def _insist(self) -> None:
        await self._stop.insisted.wait()
        for child in self._children():
            child.kill()
