"""A gateway on a real socket, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from penstock.asgi.drain import Drain
from penstock.asgi.server import StopRequest, bind, serve
from penstock.asgi.settings import HttpLimits
from penstock.fleet.catalog import build_snapshot
from penstock.fleet.settings import ModelSettings, ReplicaSettings
from penstock.gateway.app import Gateway
from penstock.gateway.settings import UpstreamSettings

CREATED = 1_750_000_000


@dataclass(frozen=True)
class RunningGateway:
    """Where it listens, and what stops it."""

    port: int
    drain: Drain
    stop: StopRequest
    ready: asyncio.Event


@asynccontextmanager
async def running_gateway(
    models: Mapping[str, Sequence[int]],
    limits: HttpLimits | None = None,
    *,
    until_ready: bool = True,
    **upstream: float,
) -> AsyncIterator[RunningGateway]:
    """Serves models by the ports of their replicas. Health is checked once, unless an interval is given."""
    settings = UpstreamSettings(**{"health_interval_s": 3600.0, **upstream})
    snapshot = build_snapshot(
        {
            name: ModelSettings(
                replicas=[
                    ReplicaSettings(url=f"http://127.0.0.1:{port}/v1", kind="penstock") for port in ports
                ]
            )
            for name, ports in models.items()
        },
        CREATED,
    )
    limits = limits or HttpLimits()
    listener, drain, stop, ready = bind("127.0.0.1", 0), Drain(), StopRequest(), asyncio.Event()
    port = listener.getsockname()[1]
    gateway = Gateway(snapshot, limits, settings, drain, on_ready=ready.set)
    async with gateway.running(), asyncio.TaskGroup() as tasks:
        serving = serve(
            gateway.application(),
            listener,
            drain,
            stop,
            drain_timeout_s=limits.drain_timeout_s,
            on_listening=lambda: None,
        )
        tasks.create_task(serving)
        try:
            if until_ready:
                await ready.wait()
            yield RunningGateway(port, drain, stop, ready)
        finally:
            stop.ask()
            stop.ask()
