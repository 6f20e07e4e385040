"""Builds the objects of each process: the only place that knows all concrete classes.

The engine's imports (torch) are inside its function, so that the gateway and the supervisor start without it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import structlog

from penstock.app.child import ChildSpec, local_url
from penstock.app.config import Config, child_environment, let_threads_sleep
from penstock.app.link import TO_CHILD, Link, Ready, ToChild
from penstock.app.readiness import Served, wait_served
from penstock.app.supervisor import LocalEngine, Supervisor
from penstock.asgi.drain import Drain
from penstock.asgi.server import StopRequest, bind, serve
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import ConfigurationError, InternalError, PenstockError
from penstock.engine.settings import EngineSettings
from penstock.fleet.catalog import build_snapshot
from penstock.fleet.orders import MakeRoom, ModelState, Roster
from penstock.fleet.settings import ReplicaSettings
from penstock.gateway.app import Gateway
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Pool

if TYPE_CHECKING:
    from penstock.engine.kv_store import KVStore
    from penstock.replica.encoder_model import ServedEncoder
    from penstock.replica.model import ServedModel

logger = structlog.get_logger(__name__)
# What the extra `engine` adds and serving a model imports.
_ENGINE_MODULES = (
    "torch", "numpy", "pybind11", "tokenizers", "safetensors", "jinja2", "huggingface_hub", "llguidance"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process serves, and the supervisor's line to it if it has one."""

    listener: socket.socket
    link: int | None = None

    async def open_link(self) -> Link[ToChild] | None:
        """The line to the supervisor."""
        return None if self.link is None else await Link.open(socket.socket(fileno=self.link), TO_CHILD)

    def tell_ready(self, link: Link[ToChild] | None) -> None:
        """Says that the process serves: to the supervisor, or else in the log."""
        if link is None:
            logger.info("serving", address=local_url(self.listener).removesuffix("/v1"))
        else:
            link.send(Ready())


def require_engine() -> None:
    """Raises ConfigurationError if this installation is the gateway alone."""
    missing = [name for name in _ENGINE_MODULES if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the engine needs {', '.join(missing)}, which this installation lacks; "
            "install it with: pip install 'penstock[engine]'"
        )


async def run_engine(settings: EngineSettings, name: str, limits: HttpLimits, place: Place) -> None:
    """One replica: asks the supervisor for room, loads the model, serves it, drains, ends.

    Raises:
        ConfigurationError: the model or a setting is refused.
    """
    require_engine()
    let_threads_sleep()
    from penstock.app.plan import plan_engine  # imports torch
    from penstock.replica.loading import load_served

    stop = StopRequest()
    loop = asyncio.get_running_loop()
    granted = asyncio.Event()
    is_loaded = False
    # Until it is loaded there is nothing to drain, and a thread that reads files cannot be interrupted.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, os._exit, 128 + number)
    link = await place.open_link()

    def on_gone() -> None:
        return stop.ask() if is_loaded else os._exit(1)

    async with _listening(link, lambda _: granted.set(), on_gone):
        if link is not None:
            link.send(await loop.run_in_executor(None, plan_engine, settings))
            await granted.wait()
        model = await loop.run_in_executor(None, load_served, settings, name)
        is_loaded = True
        stop.listen()
        await _serve_engine(model, settings, limits, place.listener, stop, lambda: place.tell_ready(link))


async def _serve_engine(
    model: ServedModel | ServedEncoder,
    settings: EngineSettings,
    limits: HttpLimits,
    listener: socket.socket,
    stop: StopRequest,
    on_listening: Callable[[], None],
) -> None:
    from penstock.app.breakdown import leave_when_frozen, leave_when_stuck, stop_when_broken
    from penstock.replica.application import build_application

    drain = Drain()
    application = build_application(model, limits, drain)
    model.service.start()
    async with asyncio.TaskGroup() as tasks:
        breakdown = tasks.create_task(stop_when_broken(model.service, stop))
        guards = [
            tasks.create_task(leave_when_stuck(model.service, drain, settings.step_timeout_s, os._exit)),
            tasks.create_task(leave_when_frozen(settings.step_timeout_s)),
        ]
        await serve(
            application,
            listener,
            drain,
            stop,
            drain_timeout_s=limits.drain_timeout_s,
            on_listening=on_listening,
        )
        has_broken = breakdown.done()
        breakdown.cancel()  # else it takes the engine's end for the operator asking a second time
        await model.service.stop()  # still guarded: its last step may be the one that hangs
        if not model.service.is_stuck:  # else the guard has the last word
            for guard in guards:
                guard.cancel()
    store = getattr(model, "kv", None)  # encoders have none
    if store is not None and settings.kv_snapshot and not has_broken and not model.service.is_stuck:
        await asyncio.to_thread(_save_snapshot, store, settings, stop)
    if has_broken:
        raise InternalError("the engine broke down; its log says why")


def _save_snapshot(store: KVStore, settings: EngineSettings, stop: StopRequest) -> None:
    from penstock.engine.kv_snapshot import save_snapshot
    from penstock.replica.loading import snapshot_path

    budget = settings.kv_snapshot_mb << 20
    save_snapshot(store, snapshot_path(settings), budget, is_wanted=lambda: not stop.insisted.is_set())


@asynccontextmanager
async def _listening(
    link: Link[ToChild] | None, on_message: Callable[[ToChild], None], on_gone: Callable[[], None]
) -> AsyncIterator[None]:
    """Hears the supervisor, if any, while the block runs. An error of ours leaves the block as it is."""
    if link is None:
        yield
        return
    failure: PenstockError | None = None
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(link.listen(on_message, on_gone))
        try:
            yield
        except PenstockError as error:  # a task group would wrap it
            failure = error
        finally:
            listening.cancel()
    if failure is not None:
        raise failure


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
    snapshot = build_snapshot(config.models, created=int(time.time()))
    gateway = Gateway(snapshot, config.server, config.upstream, drain, config.engines)
    link = await place.open_link()
    if link is not None:
        roster = await link.receive()
        if not isinstance(roster, Roster):
            return  # the supervisor is gone already
        gateway.local_models.connect(roster, link.send)
    async with (
        _listening(link, lambda message: _follow(gateway, message), stop.ask),
        gateway.running(),
        asyncio.TaskGroup() as tasks,
    ):
        closing = tasks.create_task(_close_gates(gateway, stop))
        await serve(
            gateway.application(),
            place.listener,
            drain,
            stop,
            drain_timeout_s=config.server.drain_timeout_s,
            on_listening=lambda: place.tell_ready(link),
        )
        closing.cancel()


def _follow(gateway: Gateway, message: ToChild) -> None:
    if isinstance(message, ModelState | MakeRoom):
        gateway.local_models.apply(message)


async def _close_gates(gateway: Gateway, stop: StopRequest) -> None:
    """Draining waits for running answers, not for requests whose model is not even loaded."""
    await stop.asked.wait()
    gateway.local_models.close()


async def run_up(config: Config, on_ready: Callable[[str, Served], None]) -> None:
    """Everything on this machine.

    `on_ready` is called when every model with an engine here can be asked, with the gateway's address and the
    models that have no ready replica.

    Raises:
        ConfigurationError: a port is in use, a model or setting is refused, or the engines that are loaded at
            start do not fit into the memory allowed.
        InternalError: a process keeps failing.
    """
    stop = StopRequest()
    listener = bind(config.server.host, config.server.port)
    engines, resolved = _place_engines(config)
    if engines:
        require_engine()
    gateway = ChildSpec("gateway", "gateway", (), listener, child_environment(resolved))
    stop.listen()
    supervisor = Supervisor(engines, gateway, config.engines, config.server.drain_timeout_s, stop)
    host, port = reachable_address(listener)
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    local = {engine.model for engine in engines if not engine.on_first_use}

    async def announce() -> None:
        client = Pool(host, port, authority, UpstreamSettings())
        try:
            served = await wait_served(client, local)
        finally:
            client.close()
        logger.info(
            "serving", address=f"http://{authority}", not_ready=served.not_ready, asleep=served.asleep
        )
        on_ready(f"http://{authority}", served)

    await supervisor.run(announce)


def _place_engines(config: Config) -> tuple[list[LocalEngine], Config]:
    """Every engine of the config with its socket, and the config with urls in the engines' place."""
    placed: list[tuple[str, int, tuple[str, ...], socket.socket]] = []
    models = {}
    for name, model in config.models.items():
        replicas = []
        for index, replica in enumerate(model.replicas):
            if replica.engine is None:
                replicas.append(replica)
                continue
            listener = bind("127.0.0.1", 0)
            placed.append((name, index, engine_arguments(replica.engine, name), listener))
            replicas.append(ReplicaSettings(url=local_url(listener), kind="penstock"))
        models[name] = model.model_copy(
            update={"replicas": replicas, "load": "start", "loras": model.adapter_names}
        )
    resolved = config.model_copy(update={"models": models})
    environment = child_environment(resolved)
    engines = [
        LocalEngine(
            ChildSpec(f"{name}/{index}", "engine", arguments, listener, environment),
            name,
            on_first_use=config.models[name].load == "first_use",
            has_siblings=len(config.models[name].replicas) > 1,
        )
        for name, index, arguments, listener in placed
    ]
    return engines, resolved


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
