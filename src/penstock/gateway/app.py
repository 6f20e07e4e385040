"""The gateway's ASGI application: endpoints, probes, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec

from penstock.asgi.application import Application, Endpoint
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange
from penstock.asgi.model_endpoints import ModelEndpoints
from penstock.asgi.probes import Probes
from penstock.asgi.settings import HttpLimits
from penstock.fleet.catalog import Snapshot
from penstock.gateway.health import HealthBoard, watch
from penstock.gateway.relay import Relay
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Pool
from penstock.observe import metrics as observe
from penstock.observe import names
from penstock.protocol.models import Model

# A gateway that starts in front of healthy replicas knows them before its first request, and one whose
# replicas do not answer does not wait for them.
FIRST_CHECKS_S = 1.0
RELAYED_PATHS = ("/v1/chat/completions", "/v1/completions")


class Gateway:
    """One gateway worker over one snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        limits: HttpLimits,
        upstream: UpstreamSettings,
        drain: Drain,
    ) -> None:
        self._snapshot = snapshot
        self._upstream = upstream
        self._drain = drain
        self._pools = {
            replica.id: Pool(replica.host, replica.port, replica.authority, upstream)
            for replicas in snapshot.replicas.values()
            for replica in replicas
        }
        self._board = HealthBoard(snapshot)
        self._relay = Relay(snapshot, self._pools, self._board, limits)
        self._probes = Probes("gateway", drain, self._read_state)

    def application(self) -> Application:
        """The ASGI application; enter :meth:`running` before serving it."""
        return Application(
            {
                **{("POST", path): Endpoint(self._relay.handle) for path in RELAYED_PATHS},
                **ModelEndpoints(self._models).table(),
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
            yield Model(id=name, created=created)
        for name, parent in self._snapshot.parents.items():
            yield Model(id=name, created=created, parent=parent)

    async def _ready(self, exchange: Exchange) -> None:
        """200 if some model has a ready replica and no shutdown has begun; the body says which have."""
        states = self._board.states()
        are_served = [any(replicas.values()) for replicas in states.values()]
        if self._drain.is_draining:
            word = "draining"
        else:
            word = "ready" if all(are_served) else "partly ready" if any(are_served) else "not ready"
        body = msgspec.json.encode({"status": word, "replicas": states})
        await exchange.respond(200 if word in ("ready", "partly ready") else 503, body)

    def _read_state(self) -> Iterator[observe.Reading]:
        yield names.UPSTREAM_CONNECTIONS, ("busy",), sum(pool.num_busy for pool in self._pools.values())
        yield names.UPSTREAM_CONNECTIONS, ("idle",), sum(pool.num_idle for pool in self._pools.values())
        for model, replicas in self._board.states().items():
            for replica, is_ready in replicas.items():
                yield names.REPLICA_READY, (model, replica), float(is_ready)
