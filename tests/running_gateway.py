"""A gateway on a real socket, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from penstock.asgi.drain import Drain
from penstock.asgi.server import StopRequest, bind, serve
from penstock.asgi.settings import HttpLimits
from penstock.fleet.catalog import build_snapshot
from penstock.fleet.settings import ModelSettings, ReplicaSettings
from penstock.gateway.app import Gateway
from penstock.gateway.local_models import LocalModels
from penstock.gateway.settings import UpstreamSettings
from raw_client import Answer, RawClient, raw_client
from scripted_upstream import LIMIT_S, Script, ScriptedUpstream, healthy

CREATED = 1_750_000_000


@dataclass(frozen=True)
class RunningGateway:
    """Where it listens, and what stops it."""

    port: int
    drain: Drain
    stop: StopRequest
    local_models: LocalModels


@asynccontextmanager
async def running_gateway(
    models: Mapping[str, Sequence[int]],
    limits: HttpLimits | None = None,
    *,
    first_checks_s: float = LIMIT_S,
    loras: Mapping[str, list[str]] | None = None,
    **upstream: float,
) -> AsyncIterator[RunningGateway]:
    """Serves models by the ports of their replicas, `loras` by their models.

    Health is checked once, before the first request, unless an interval is given.
    """
    settings = UpstreamSettings(**{"health_interval_s": 3600.0, **upstream})
    snapshot = build_snapshot(
        {
            name: ModelSettings(
                replicas=[
                    ReplicaSettings(url=f"http://127.0.0.1:{port}/v1", kind="penstock") for port in ports
                ],
                loras=(loras or {}).get(name, []),
            )
            for name, ports in models.items()
        },
        CREATED,
    )
    limits = limits or HttpLimits()
    listener, drain, stop = bind("127.0.0.1", 0), Drain(), StopRequest()
    port = listener.getsockname()[1]
    gateway = Gateway(snapshot, limits, settings, drain)
    async with gateway.running(first_checks_s), asyncio.TaskGroup() as tasks:
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
            yield RunningGateway(port, drain, stop, gateway.local_models)
        finally:
            stop.ask()
            stop.ask()


@asynccontextmanager
async def relayed(
    *scripts: Script, limits: HttpLimits | None = None, **upstream: float
) -> AsyncIterator[tuple[RawClient, ScriptedUpstream, RunningGateway]]:
    """A client of a gateway with one model, `m`, whose replica is healthy once and then plays the scripts."""
    async with (
        ScriptedUpstream(healthy, *scripts) as replica,
        running_gateway({"m": [replica.port]}, limits, **upstream) as gateway,
        raw_client(gateway.port) as client,
    ):
        yield client, replica, gateway


def error_of(answer: Answer) -> dict[str, object]:
    """What the error envelope holds."""
    return json.loads(answer.body)["error"]
