"""One model's gate: what the gateway knows of a model that can sleep, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.asgi.drain import RETRY_AFTER_S
from penstock.base.errors import DrainingError, ModelLoadError, NotReadyError, PenstockError
from penstock.fleet.orders import ModelState, Phase
from penstock.protocol.strict import shown


@dataclass(slots=True)
class Gate:
    """What the gateway knows of one model."""

    state: ModelState
    """As last told; `phase` is ahead of it while an order is on its way."""
    on_first_use: bool
    phase: Phase
    order: int = 0
    """Number of the last order about it."""
    num_running: int = 0
    waiting: set[asyncio.Future[PenstockError | None]] = field(default_factory=set)
    sleepers: set[asyncio.Future[None]] = field(default_factory=set)
    """Wait for the requests that run to end, to put it to sleep. It is closed to new ones."""
    watchers: set[asyncio.Future[None]] = field(default_factory=set)
    """Wait for any change."""
    last_used: float = 0.0
    idle_timer: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that have no answer yet."""
        return sum(not future.done() for future in self.waiting)

    @property
    def is_open(self) -> bool:
        """True if requests may pass."""
        return self.phase == "ready" and not self.sleepers

    @property
    def is_idle(self) -> bool:
        """True if it is ready and nobody needs it now."""
        return self.phase == "ready" and not self.num_running and not self.waiting

    def answer(self, make: Callable[[], PenstockError | None]) -> None:
        """Lets all that wait look again, or fail with an error each of their own."""
        for future in self.waiting:
            if not future.done():
                future.set_result(make())

    async def change(self) -> None:
        """Waits for the next change of phase."""
        await _join(self.watchers)

    async def unload_order(self) -> None:
        """Closes the gate and waits until the model's unloading was ordered, or needs no order any more."""
        await _join(self.sleepers)

    def tell(self, group: set[asyncio.Future[None]]) -> None:
        """Ends the waiting of all watchers, or of all sleepers."""
        for future in group:
            if not future.done():
                future.set_result(None)
        group.clear()

    def stop_timer(self) -> None:
        """Idleness has ended, or does not matter any more."""
        if self.idle_timer is not None:
            self.idle_timer.cancel()
            self.idle_timer = None


async def _join(group: set[asyncio.Future[None]]) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    group.add(future)
    try:
        await future
    finally:
        group.discard(future)


def load_error(state: ModelState) -> PenstockError:
    """Of a failed load."""
    message = f"the model {shown(state.model)!r} could not be loaded: {state.reason}"
    kind = NotReadyError if state.lacks_room else ModelLoadError
    return kind(message, retry_after_s=state.retry_after_s)


def stopping() -> DrainingError:
    """Of a request that would have to wait while the gateway stops."""
    return DrainingError(
        "the server is shutting down and loads no more models; try again later", retry_after_s=RETRY_AFTER_S
    )
