"""The gates of models that can sleep: who may pass, who waits, who is used least.

A gate is open while its model is ready. A request at a closed one asks for the model, once for all that wait,
and waits. Who owns the engines is at the other end of `send`, or nobody: then there are no gates.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import structlog

from penstock.base.errors import (
    CapacityError,
    DeadlineExceededError,
    NotReadyError,
    PenstockError,
    QueueFullError,
)
from penstock.fleet.orders import MakeRoom, ModelState, Order, Phase, Roster, Unload, UnloadReason, Wake
from penstock.fleet.settings import EnginesSettings
from penstock.gateway.gate import Gate, load_error, stopping
from penstock.observe import metrics as observe
from penstock.observe import names
from penstock.protocol.strict import shown

logger = structlog.get_logger(__name__)
# Told to clients for whom a model did not become ready in time; most loads take no longer.
RETRY_AFTER_S = 10


class LocalModels:
    """All gates of one gateway worker."""

    def __init__(
        self,
        settings: EnginesSettings,
        metrics: observe.Metrics,
        on_phase: Callable[[str, bool], None],
    ) -> None:
        """`on_phase` is told whether a model is ready, whenever that changes; before requests pass."""
        self._settings = settings
        self._on_phase = on_phase
        self._gates: dict[str, Gate] = {}
        self._send: Callable[[Order], None] = lambda order: None
        self._num_orders = 0
        self._may_unload: frozenset[str] = frozenset()
        self._last_room_order = 0
        self._is_closed = False
        self._loads = metrics.counter(names.MODEL_LOADS)
        self._load_seconds = metrics.histogram(names.MODEL_LOAD_SECONDS)
        self._unloads = metrics.counter(names.MODEL_UNLOADS)

    def connect(self, roster: Roster, send: Callable[[Order], None]) -> None:
        """Takes the models' states; from now on `send` carries orders to their owner."""
        self._send = send
        for state in roster.models:
            gate = Gate(state, state.model in roster.on_first_use, state.phase)
            self._gates[state.model] = gate
            self._on_phase(state.model, state.phase == "ready")
            self._settle(state.model, gate)

    def apply(self, message: ModelState | MakeRoom) -> None:
        """Takes what the owner says."""
        if isinstance(message, MakeRoom):
            if message.orders_seen >= self._last_room_order:
                self._may_unload = frozenset(message.models)
                self._make_room()
            return
        gate = self._gates[message.model]
        if message.load_seconds is not None:
            self._count_load(message)
        gate.state = message
        if message.orders_seen < gate.order:
            return  # an order of ours is on its way, and will be answered
        self._become(message.model, gate, message.phase)

    def __contains__(self, model: str) -> bool:
        return model in self._gates

    def names(self) -> Sequence[str]:
        """The models with a gate."""
        return list(self._gates)

    def phase(self, model: str) -> Phase:
        """How far a model is."""
        return self._gates[model].phase

    def reason(self, model: str) -> str:
        """Why its last load failed; empty if that is not its state."""
        gate = self._gates[model]
        return gate.state.reason if gate.phase == "failed" else ""

    def is_open(self, model: str) -> bool:
        """True if a request for the model passes without waiting; also if it has no gate."""
        gate = self._gates.get(model)
        return gate is None or gate.is_open

    def can_be_had(self, model: str) -> bool:
        """True if a request for the model will, as far as is known, pass now or after a load."""
        gate = self._gates[model]
        return gate.phase in ("ready", "asleep") or (gate.on_first_use and gate.phase != "failed")

    @asynccontextmanager
    async def use(self, model: str, timeout_s: float) -> AsyncIterator[None]:
        """Passes the gate, if there is one, within `timeout_s` seconds; the model stays while the block runs.

        Raises:
            ModelLoadError: the load failed.
            DeadlineExceededError: `timeout_s` passed.
            CapacityError: there is no room, the load takes too long, or too many wait already.
        """
        gate = self._gates.get(model)
        if gate is None:
            yield
            return
        if not gate.is_open:
            await self._wait_open(model, gate, timeout_s)
        gate.num_running += 1
        gate.stop_timer()
        try:
            yield
        finally:
            gate.num_running -= 1
            gate.last_used = asyncio.get_running_loop().time()
            self._settle(model, gate)

    async def wake(self, model: str) -> None:
        """Loads a model and waits until it is ready. Raises as :meth:`use`."""
        async with self.use(model, math.inf):
            pass

    async def sleep(self, model: str) -> None:
        """Lets running requests finish, holding new ones back, and unloads the model.

        Requests that are held back wake it again.

        Raises:
            CapacityError: requests still ran after `load_timeout_s`, and the model stays; or too many ask.
        """
        gate = self._gates[model]
        if len(gate.sleepers) + len(gate.watchers) >= self._settings.max_waiting:
            raise QueueFullError(
                f"{self._settings.max_waiting} requests wait for {shown(model)!r} to sleep already",
                retry_after_s=RETRY_AFTER_S,
            )
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                while gate.phase == "loading":  # those who wait for it come first
                    await gate.change()
                if gate.phase == "ready":
                    # Perhaps nobody runs: then it is due as soon as the next line has closed the gate.
                    asyncio.get_running_loop().call_soon(self._settle, model, gate)
                    await gate.unload_order()
                while gate.phase == "unloading":
                    await gate.change()
        except TimeoutError as error:
            raise CapacityError(
                f"requests for {shown(model)!r} still run, or it is still being loaded; it stays awake",
                retry_after_s=RETRY_AFTER_S,
            ) from error
        finally:
            if gate.is_open:
                self._open(model, gate)

    def close(self) -> None:
        """Lets nobody wait any more: who waits and who would is told that the server stops."""
        self._is_closed = True
        for gate in self._gates.values():
            gate.answer(stopping)

    def readings(self) -> Iterator[observe.Reading]:
        """For the exposition of metrics."""
        if not self._gates:
            return
        phases = [gate.phase for gate in self._gates.values()]
        for phase in ("asleep", "loading", "ready", "unloading", "failed"):
            yield names.LOCAL_MODELS, (phase,), phases.count(phase)
        for model, gate in self._gates.items():
            yield names.MODEL_WAITING, (model,), len(gate.waiting)

    async def _wait_open(self, model: str, gate: Gate, timeout_s: float) -> None:
        limit = min(timeout_s, self._settings.load_timeout_s)
        try:
            async with asyncio.timeout(limit):
                while not gate.is_open:
                    await self._wait(model, gate)
        except TimeoutError as error:
            if limit == timeout_s:
                raise DeadlineExceededError(
                    f"the model {shown(model)!r} was not loaded within the request's {timeout_s:g} s"
                ) from error
            raise NotReadyError(
                f"the model {shown(model)!r} is not loaded after {limit:g} s; try again later",
                retry_after_s=RETRY_AFTER_S,
            ) from error

    async def _wait(self, model: str, gate: Gate) -> None:
        """Until something is known: the gate may be open, or the load has failed."""
        if self._is_closed:
            raise stopping()
        if len(gate.waiting) >= self._settings.max_waiting:
            raise QueueFullError(
                f"{len(gate.waiting)} requests wait for {shown(model)!r} to be loaded already",
                retry_after_s=RETRY_AFTER_S,
            )
        answer: asyncio.Future[PenstockError | None] = asyncio.get_running_loop().create_future()
        gate.waiting.add(answer)
        if gate.phase not in ("ready", "loading"):
            self._order(gate, Wake(model))
            self._become(model, gate, "loading")
        num_waiting = len(gate.waiting)
        if num_waiting & (num_waiting - 1) == 0:  # a line per doubling, however many come
            logger.info("requests wait for a model", model=model, waiting=num_waiting)
        try:
            error = await answer
        except BaseException:  # whoever leaves may be the last whom the model was kept for
            gate.waiting.discard(answer)
            self._settle(model, gate)
            raise
        gate.waiting.discard(answer)
        if error is not None:
            raise error

    def _become(self, model: str, gate: Gate, phase: Phase) -> None:
        gate.phase = phase
        self._on_phase(model, phase == "ready")
        if phase != "ready":
            gate.stop_timer()
            gate.tell(gate.sleepers)
        if phase == "failed":
            gate.answer(lambda: load_error(gate.state))
        elif phase == "ready":
            self._open(model, gate)
        elif gate.num_waiting and phase != "loading":
            self._order(gate, Wake(model))
            self._become(model, gate, "loading")
        gate.tell(gate.watchers)

    def _open(self, model: str, gate: Gate) -> None:
        if gate.is_open and gate.num_waiting:
            logger.info("the model that requests waited for is ready", model=model, waited=gate.num_waiting)
            gate.answer(lambda: None)
        self._settle(model, gate)

    def _settle(self, model: str, gate: Gate) -> None:
        """Does what is due when a model is ready and nobody is asking anything of it."""
        if gate.phase == "ready" and gate.sleepers and not gate.num_running:
            self._unload(model, gate, "asked")
        elif gate.is_idle:
            self._make_room()
            self._start_timer(model, gate)

    def _start_timer(self, model: str, gate: Gate) -> None:
        """Begins to count the time without a request, unless the model just had to make room."""
        if gate.is_idle and gate.on_first_use and self._settings.idle_s:
            gate.stop_timer()
            gate.idle_timer = asyncio.get_running_loop().call_later(
                self._settings.idle_s, self._idle_is_over, model, gate
            )

    def _idle_is_over(self, model: str, gate: Gate) -> None:
        gate.idle_timer = None
        if gate.is_idle:
            self._unload(model, gate, "idle")

    def _make_room(self) -> None:
        """Unloads the least recently used idle one of those that may be."""
        idle = [
            (gate.last_used, model)
            for model, gate in self._gates.items()
            if model in self._may_unload and gate.is_idle
        ]
        if idle:
            self._may_unload = frozenset()
            _, model = min(idle)
            self._unload(model, self._gates[model], "room")
            self._last_room_order = self._num_orders

    def _unload(self, model: str, gate: Gate, reason: UnloadReason) -> None:
        self._unloads.labels(model, reason).inc()
        logger.info("unloading a model", model=model, reason=reason)
        self._order(gate, Unload(model, reason))
        self._become(model, gate, "unloading")

    def _order(self, gate: Gate, order: Order) -> None:
        self._num_orders += 1
        gate.order = self._num_orders
        self._send(order)

    def _count_load(self, state: ModelState) -> None:
        outcome = "ready" if state.phase == "ready" else "failed"
        self._loads.labels(state.model, outcome).inc()
        if outcome == "ready" and state.load_seconds is not None:
            self._load_seconds.labels(state.model).observe(state.load_seconds)
