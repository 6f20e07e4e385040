"""An owner of engines without engines: it keeps the contract of fleet/orders.py and does as a test says.

Messages lie in two queues until they are delivered, so orders and states can cross on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from prometheus_client.parser import text_string_to_metric_families

from penstock.fleet.orders import MakeRoom, ModelState, Order, Phase, Roster, Unload, Wake
from penstock.fleet.settings import EnginesSettings
from penstock.gateway.local_models import LocalModels
from penstock.observe.metrics import Metrics


class ScriptedOwner:
    """The other end of a gateway's gates."""

    def __init__(
        self, models: Sequence[str], phase: Phase = "asleep", on_unload: Callable[[str], None] | None = None
    ) -> None:
        self.phases: dict[str, Phase] = dict.fromkeys(models, phase)
        self.orders: deque[Order] = deque()
        self.states: deque[ModelState | MakeRoom] = deque()
        self.obeyed: list[Order] = []
        self._wanted_again: set[str] = set()
        self._on_unload = on_unload

    def roster(self, on_first_use: Sequence[str] | None = None) -> Roster:
        """What a new gateway is told."""
        states = [ModelState(model, phase) for model, phase in self.phases.items()]
        return Roster(states, list(self.phases) if on_first_use is None else on_first_use)

    def obey(self) -> None:
        """Takes the next order and answers it."""
        order = self.orders.popleft()
        self.obeyed.append(order)
        phase = self.phases[order.model]
        if isinstance(order, Unload) and phase == "ready":
            if self._on_unload is not None:
                self._on_unload(order.model)
            self.phases[order.model] = "unloading"
            self._wanted_again.discard(order.model)
        elif isinstance(order, Wake) and phase == "unloading":
            self._wanted_again.add(order.model)
        elif isinstance(order, Wake) and phase in ("asleep", "failed"):
            self.phases[order.model] = "loading"
        self._tell(order.model)

    def load(self, model: str, reason: str = "", *, lacks_room: bool = False) -> None:
        """A load ends, well unless there is a reason."""
        if self.phases[model] != "loading":
            return
        self.phases[model] = "failed" if reason else "ready"
        self._tell(model, reason, lacks_room=lacks_room, load_seconds=2.0)

    def unloaded(self, model: str) -> None:
        """An engine that was told to end has ended."""
        if self.phases[model] == "unloading":
            self.phases[model] = "loading" if model in self._wanted_again else "asleep"
            self._wanted_again.discard(model)
            self._tell(model)

    def crash(self, model: str) -> None:
        """An engine that serves dies and is started anew."""
        if self.phases[model] == "ready":
            self.phases[model] = "loading"
            self._tell(model)

    def need_room(self, models: Sequence[str]) -> None:
        """Somebody waits for memory."""
        self.states.append(MakeRoom(models, len(self.obeyed)))

    def _tell(
        self,
        model: str,
        reason: str = "",
        *,
        lacks_room: bool = False,
        load_seconds: float | None = None,
    ) -> None:
        seen = len(self.obeyed)
        phase: Phase = self.phases[model]
        if phase == "unloading" and model in self._wanted_again:
            phase = "loading"
        retry = 7 if phase == "failed" else 0
        self.states.append(ModelState(model, phase, seen, reason, lacks_room, retry, load_seconds))


class Gates:
    """LocalModels joined to a scripted owner."""

    def __init__(
        self,
        *models: str,
        phase: Phase = "asleep",
        on_first_use: Sequence[str] | None = None,
        on_unload: Callable[[str], None] | None = None,
        **settings: float,
    ) -> None:
        self.owner = ScriptedOwner(models, phase, on_unload)
        self.is_ready: dict[str, bool] = {}
        self.metrics = Metrics()
        self.models = LocalModels(EnginesSettings(**settings), self.metrics, self.is_ready.__setitem__)
        self.metrics.observe(self.models.readings)
        self.models.connect(self.owner.roster(on_first_use), self.owner.orders.append)

    def deliver(self) -> None:
        """All orders and states, until none is on its way."""
        while self.owner.orders or self.owner.states:
            while self.owner.orders:
                self.owner.obey()
            while self.owner.states:
                self.models.apply(self.owner.states.popleft())

    def load(self, model: str, reason: str = "", *, lacks_room: bool = False) -> None:
        """A load that was ordered ends and everybody knows."""
        self.deliver()
        self.owner.load(model, reason, lacks_room=lacks_room)
        self.deliver()

    def unloaded(self, model: str) -> None:
        """An unload that was ordered ends and everybody knows."""
        self.deliver()
        self.owner.unloaded(model)
        self.deliver()

    def samples(self) -> dict[tuple[str, ...], float]:
        """The exposition's samples by name and label values."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.metrics.expose().decode())
            for sample in family.samples
        }
