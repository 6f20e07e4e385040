"""What the supervisor makes of orders; its children are in test_keeper.py and tests/end_to_end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.app.child import ChildSpec
from penstock.app.config import Config, child_environment
from penstock.app.supervisor import LocalEngine, Supervisor
from penstock.asgi.server import StopRequest, bind
from penstock.base.errors import ConfigurationError
from penstock.fleet.settings import EnginesSettings

LIMIT_S = 60


async def test_only_models_asleep_need_no_engine_to_be_announced(tmp_path: Path) -> None:
    """The gateway's word is enough; a stop then ends everything, sleepers included, with nothing to end."""
    stop = StopRequest()
    environment = child_environment(Config())
    announced = asyncio.Event()

    async def announce() -> None:
        announced.set()

    with bind("127.0.0.1", 0) as gateway, bind("127.0.0.1", 0) as engine:
        config = tmp_path / "gateway.yaml"
        config.write_text("models: {a: {replicas: [{url: 'http://127.0.0.1:9/v1'}]}}")
        asleep = LocalEngine(ChildSpec("a/0", "engine", ("x",), engine, environment), "a", True, False)
        inherited = {key: value for key, value in environment.items() if not key.startswith("PENSTOCK__")}
        front = ChildSpec("gateway", "gateway", (f"--config={config}",), gateway, inherited)
        supervisor = Supervisor([asleep], front, EnginesSettings(), 5.0, stop)
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(supervisor.run(announce))
            await announced.wait()
            stop.ask()
            await running


async def test_a_gateway_that_refuses_to_start_stops_everything() -> None:
    """Its message is on standard error; there is nothing to restart."""
    stop = StopRequest()

    async def announce() -> None:
        raise AssertionError("nothing serves")

    with bind("127.0.0.1", 0) as listener:
        front = ChildSpec("gateway", "gateway", ("--config=/no/such",), listener, child_environment(Config()))
        supervisor = Supervisor([], front, EnginesSettings(), 5.0, stop)
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(ConfigurationError, match="gateway refused to start"):
                await supervisor.run(announce)
    assert not stop.asked.is_set()
