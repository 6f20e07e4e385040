"""Builds the objects of each process: the only place that knows all concrete classes.

The engine's imports (torch) are inside its function, so that the gateway and the supervisor start without it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import structlog

from penstock.app.child import ChildSpec
from penstock.app.config import Config, child_environment, let_threads_sleep
from penstock.app.link import ChildLink
from penstock.app.readiness import wait_served
from penstock.app.supervisor import Supervisor, local_url
from penstock.asgi.drain import Drain
from penstock.asgi.server import StopRequest, bind, serve
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import ConfigurationError, InternalError
from penstock.engine.settings import EngineSettings
from penstock.fleet.catalog import build_snapshot
from penstock.fleet.settings import ReplicaSettings
from penstock.gateway.app import Gateway
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Pool

logger = structlog.get_logger(__name__)
# What the extra `engine` adds and serving a model imports.
_ENGINE_MODULES = ("torch", "numpy", "pybind11", "tokenizers", "safetensors", "jinja2", "huggingface_hub")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process serves, and the supervisor's line to it if it has one."""

    listener: socket.socket
    link: int | None = None

    def tell_ready(self, on_gone: Callable[[], None]) -> Callable[[], None]:
        """What to call when the process serves. From now on `on_gone` is called at the supervisor's end."""
        if self.link is None:
            address = local_url(self.listener).removesuffix("/v1")
            return lambda: logger.info("serving", address=address)
        link = ChildLink(self.link)
        link.watch(on_gone)
        return link.tell_ready


def require_engine() -> None:
    """Raises ConfigurationError if this installation is the gateway alone."""
    missing = [name for name in _ENGINE_MODULES if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the engine needs {', '.join(missing)}, which this installation lacks; "
            "install it with: pip install 'penstock[engine]'"
        )


async def run_engine(settings: EngineSettings, name: str, limits: HttpLimits, place: Place) -> None:
    """One replica: loads the model, serves it, drains, ends.

    Raises:
        ConfigurationError: the model or a setting is refused.
    """
    require_engine()
    let_threads_sleep()
    from penstock.replica.loading import load_model  # imports torch

    stop = StopRequest()
    loop = asyncio.get_running_loop()
    is_loaded = False
    # Until it is loaded there is nothing to drain, and a thread that reads files cannot be interrupted.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, os._exit, 128 + number)
    tell_ready = place.tell_ready(lambda: stop.ask() if is_loaded else os._exit(1))
    model = await loop.run_in_executor(None, load_model, settings, name)
    is_loaded = True
    stop.listen()
    from penstock.app.breakdown import leave_when_frozen, leave_when_stuck, stop_when_broken
    from penstock.replica.app import Replica

    drain = Drain()
    application = Replica(model, limits, drain).application()
    model.service.start()
    async with asyncio.TaskGroup() as tasks:
        breakdown = tasks.create_task(stop_when_broken(model.service, stop))
        guards = [
            tasks.create_task(leave_when_stuck(model.service, drain, settings.step_timeout_s, os._exit)),
            tasks.create_task(leave_when_frozen(settings.step_timeout_s)),
        ]
        await serve(
            application,
            place.listener,
            drain,
            stop,
            drain_timeout_s=limits.drain_timeout_s,
            on_listening=tell_ready,
        )
        has_broken = breakdown.done()
        await model.service.stop()  # still guarded: its last step may be the one that hangs
        if not model.service.is_stuck:  # else the guard has the last word
            for guard in (breakdown, *guards):
                guard.cancel()
    if has_broken:
        raise InternalError("the engine broke down; its log says why")


async def run_gateway(config: Config, place: Place) -> None:
    """One gateway worker.

    Raises:
        ConfigurationError: a model has an engine, which only `penstock up` starts.
    """
    for name, model in config.models.items():
        if any(replica.url is None for replica in model.replicas):
            raise ConfigurationError(
                f"models.{name} has an engine; `penstock gateway` serves urls only; use `penstock up`",
                param=f"models.{name}.replicas",
            )
    stop, drain = StopRequest(), Drain()
    stop.listen()
    tell_ready = place.tell_ready(stop.ask)
    snapshot = build_snapshot(config.models, created=int(time.time()))
    gateway = Gateway(snapshot, config.server, config.upstream, drain)
    async with gateway.running():
        await serve(
            gateway.application(),
            place.listener,
            drain,
            stop,
            drain_timeout_s=config.server.drain_timeout_s,
            on_listening=tell_ready,
        )


async def run_up(config: Config, on_ready: Callable[[str, list[str]], None]) -> None:
    """Everything on this machine.

    `on_ready` is called when every model with an engine here can be asked, with the gateway's address and the
    models that have no ready replica.

    Raises:
        ConfigurationError: a port is in use, or a model or setting is refused.
        InternalError: a process keeps failing.
    """
    stop = StopRequest()
    listener = bind(config.server.host, config.server.port)
    engines, resolved = _place_engines(config)
    if engines:
        require_engine()
    environment = child_environment(resolved)
    gateway = ChildSpec("gateway", "gateway", (), listener, environment)
    specs = [
        ChildSpec(name, "engine", arguments, socket_, environment)
        for name, (arguments, socket_) in engines.items()
    ]
    stop.listen()
    supervisor = Supervisor(specs, gateway, config.server.drain_timeout_s, stop)
    host, port = reachable_address(listener)
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    local = [
        name
        for name, model in config.models.items()
        if any(replica.engine is not None for replica in model.replicas)
    ]

    async def announce() -> None:
        client = Pool(host, port, authority, UpstreamSettings())
        try:
            waiting = await wait_served(client, local)
        finally:
            client.close()
        logger.info("serving", address=f"http://{authority}", not_ready=waiting)
        on_ready(f"http://{authority}", waiting)

    await supervisor.run(announce)


_EngineCommand = tuple[tuple[str, ...], socket.socket]


def _place_engines(config: Config) -> tuple[Mapping[str, _EngineCommand], Config]:
    """A command and a socket for every engine, and the config with their urls in the engines' place."""
    engines: dict[str, _EngineCommand] = {}
    models = {}
    for name, model in config.models.items():
        replicas = []
        for index, replica in enumerate(model.replicas):
            if replica.engine is None:
                replicas.append(replica)
                continue
            listener = bind("127.0.0.1", 0)
            engines[f"{name}/{index}"] = (engine_arguments(replica.engine, name), listener)
            replicas.append(ReplicaSettings(url=local_url(listener), kind="penstock"))
        models[name] = model.model_copy(update={"replicas": replicas, "loras": model.adapter_names})
    return engines, config.model_copy(update={"models": models})


def engine_arguments(settings: EngineSettings, name: str) -> tuple[str, ...]:
    """What `penstock engine` is given to run with these settings."""
    options = [
        _option(field, one)
        for field, value in settings.model_dump().items()
        if field != "model"
        for one in (value if isinstance(value, list) else [value])
    ]
    return (f"--name={name}", *options, "--", settings.model)  # a folder's name may begin with a dash


def _option(field: str, value: object) -> str:
    name = field.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def reachable_address(listener: socket.socket) -> tuple[str, int]:
    """Host and port at which a client on this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def inherited_listener(descriptor: int) -> socket.socket:
    """The listening socket that the supervisor handed down."""
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    return listener
