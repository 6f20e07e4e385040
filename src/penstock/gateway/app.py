"""The gateway's ASGI application: endpoints, probes, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from penstock.asgi.application import Application, Endpoint
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange
from penstock.asgi.model_endpoints import ModelEndpoints
from penstock.asgi.probes import Probes
from penstock.asgi.settings import HttpLimits
from penstock.fleet.catalog import Snapshot
from penstock.fleet.settings import EnginesSettings
from penstock.gateway.health import HealthBoard, watch
from penstock.gateway.local_models import LocalModels
from penstock.gateway.relay import Relay
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.sleeping import SleepEndpoints
from penstock.gateway.upstream.pool import Pool
from penstock.observe import metrics as observe
from penstock.observe import names
from penstock.protocol.models import Model

# A gateway that starts in front of healthy replicas knows them before its first request, and one whose
# replicas do not answer does not wait for them.
FIRST_CHECKS_S = 1.0
RELAYED_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/tokenize",
    "/detokenize",
)


class Availability(msgspec.Struct, frozen=True):
    """Whether a request for a model would be answered now."""

    state: str
    """A local model's phase; of others, `ready` or `not ready`."""
    reason: str | msgspec.UnsetType = msgspec.UNSET
    """Why it failed to load."""


class ListedModel(Model, frozen=True, kw_only=True):
    """A model with an addition of ours, which OpenAI's clients pass over."""

    penstock: Availability


class Gateway:
    """One gateway worker over one snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        limits: HttpLimits,
        upstream: UpstreamSettings,
        drain: Drain,
        engines: EnginesSettings | None = None,
    ) -> None:
        """`engines` bounds the waiting for models that :attr:`local_models` is told of."""
        self._snapshot = snapshot
        self._upstream = upstream
        self._drain = drain
        self._pools = {
            replica.id: Pool(replica.host, replica.port, replica.authority, upstream)
            for replicas in snapshot.replicas.values()
            for replica in replicas
        }
        self._board = HealthBoard(snapshot)
        self._probes = Probes("gateway", drain, self._read_state)
        self.local_models = LocalModels(
            engines or EnginesSettings(), self._probes.metrics, self._follow_owner
        )
        """The models whose engines the supervisor owns; none until it is connected."""
        self._relay = Relay(snapshot, self._pools, self._board, self.local_models, limits)
        self._sleeping = SleepEndpoints(self.local_models, limits)

    def application(self) -> Application:
        """The ASGI application; enter :meth:`running` before serving it."""
        return Application(
            {
                **{("POST", path): Endpoint(self._relay.handle) for path in RELAYED_PATHS},
                **ModelEndpoints(self._models).table(),
                **self._sleeping.table(),
                **self._probes.table(),
                ("GET", "/readyz"): Endpoint(self._ready, is_work=False),
            },
            self._drain,
            self._probes.count,
        )

    @asynccontextmanager
    async def running(self, first_checks_s: float = FIRST_CHECKS_S) -> AsyncIterator[None]:
        """Watches the replicas while the block runs; then closes every connection.

        The block begins when every replica was checked once, after `first_checks_s` at the latest.
        """
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(self._snapshot, self._pools, self._board, self._upstream))
            try:
                await self._board.wait_known(first_checks_s)
                yield
            finally:
                watching.cancel()
                for pool in self._pools.values():
                    pool.close()

    def _models(self) -> Iterator[Model]:
        created = self._snapshot.created
        for name in self._snapshot.replicas:
            yield self._describe(Model(id=name, created=created))
        for name, parent in self._snapshot.parents.items():
            yield Model(id=name, created=created, parent=parent)

    async def _ready(self, exchange: Exchange) -> None:
        """200 if some model has a ready replica or can be loaded, and no shutdown has begun; the body says
        which.
        """
        states = self._board.states()
        are_served = [self._is_served(model, replicas) for model, replicas in states.items()]
        if self._drain.is_draining:
            word = "draining"
        elif all(are_served):
            word = "ready"
        else:
            # A model that failed is tried again at its next request, which must be let through to come.
            failed = (self.local_models.phase(model) == "failed" for model in self.local_models.names())
            word = "partly ready" if any(are_served) or any(failed) else "not ready"
        body: dict[str, object] = {"status": word, "replicas": states}
        if phases := {model: self.local_models.phase(model) for model in self.local_models.names()}:
            body["models"] = phases
        status = 200 if word in ("ready", "partly ready") else 503
        await exchange.respond(status, msgspec.json.encode(body))

    def _is_served(self, model: str, replicas: Mapping[str, bool]) -> bool:
        if model in self.local_models:
            return self.local_models.can_be_had(model)
        return any(replicas.values())

    def _follow_owner(self, model: str, is_ready: bool) -> None:
        for replica in self._snapshot.replicas[model]:
            self._board.set_resting(replica, not is_ready)

    def _describe(self, model: Model) -> Model:
        if model.id in self.local_models:
            state: str = self.local_models.phase(model.id)
            reason = self.local_models.reason(model.id)
        else:
            state, reason = "ready" if self._board.ready(model.id) else "not ready", ""
        return ListedModel(
            id=model.id, created=model.created, penstock=Availability(state, reason or msgspec.UNSET)
        )

    def _read_state(self) -> Iterator[observe.Reading]:
        yield from self.local_models.readings()
        yield names.UPSTREAM_CONNECTIONS, ("busy",), sum(pool.num_busy for pool in self._pools.values())
        yield names.UPSTREAM_CONNECTIONS, ("idle",), sum(pool.num_idle for pool in self._pools.values())
        for model, replicas in self._board.states().items():
            for replica, is_ready in replicas.items():
                yield names.REPLICA_READY, (model, replica), float(is_ready)
