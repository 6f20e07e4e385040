"""One engine's life, with real processes; the models' side of it is in tests/end_to_end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from penstock.app.budget import MIB, Budget, resident_bytes
from penstock.app.child import ChildSpec, local_url
from penstock.app.config import Config, child_environment
from penstock.app.keeper import Keeper
from penstock.asgi.server import bind
from penstock.base.errors import ConfigurationError
from penstock.fleet.orders import Phase

LIMIT_S = 120
ARGUMENTS = ("--name=tiny", "--kv-cache-mb=8", "--", "builtin:tiny")


class Phases:
    """The phases that a keeper went through, to be waited for."""

    def __init__(self) -> None:
        self.seen: list[Phase] = []
        self._changed = asyncio.Event()

    def add(self, phase: Phase) -> None:
        """One more."""
        self.seen.append(phase)
        self._changed.set()

    async def wait(self, phase: Phase, times: int = 1) -> None:
        """Waits until the last is `phase`, for the n-th time."""
        while self.seen[-1:] != [phase] or self.seen.count(phase) < times:
            self._changed.clear()
            await self._changed.wait()


def ignore(engines: object) -> None:
    """Nobody can make room."""


@asynccontextmanager
async def kept(
    *arguments: str,
    on_first_use: bool = True,
    on_change: Callable[[Keeper, Phases], None] = lambda keeper, phases: None,
    memory_mb: int = 0,
) -> AsyncIterator[tuple[Keeper, Phases, Budget]]:
    """A keeper at work, and the phases that it went through; its process is ended after the block."""
    phases = Phases()

    def note(keeper: Keeper) -> None:
        phases.add(keeper.phase)
        on_change(keeper, phases)

    budget = Budget(memory_mb * MIB, ignore)
    with bind("127.0.0.1", 0) as listener:
        spec = ChildSpec("tiny/0", "engine", arguments or ARGUMENTS, listener, child_environment(Config()))
        keeper = Keeper(
            spec,
            "tiny",
            budget,
            on_first_use=on_first_use,
            load_timeout_s=LIMIT_S,
            stop_timeout_s=LIMIT_S,
            on_change=note,
        )
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(keeper.keep())
            try:
                yield keeper, phases, budget
            finally:
                keeping.cancel()
                if keeper.child is not None:
                    keeper.child.kill()
                    await keeper.child.wait()
                    keeper.child.link.close()


async def test_from_asleep_to_ready_and_back() -> None:
    """The process is charged what it announced, which holds it, and nothing when it has ended."""
    async with kept() as (keeper, phases, budget):
        assert keeper.child is None
        keeper.wake()
        keeper.wake()
        await phases.wait("ready")
        assert keeper.child is not None
        charged = budget.charged_bytes("tiny/0")
        assert charged >= resident_bytes(keeper.child.process.pid) > 8 * MIB
        first = keeper.child.process
        keeper.unload()
        await phases.wait("asleep")
        assert first.returncode == 0
        assert not budget.holds("tiny/0")
        assert phases.seen == ["loading", "loading", "ready", "unloading", "asleep"]


async def test_orders_that_come_at_once_are_all_obeyed() -> None:
    """An engine that is unloaded and woken before anything else moves is a new one."""

    first: list[asyncio.subprocess.Process] = []

    def turn_over(keeper: Keeper, phases: Phases) -> None:
        if phases.seen.count("ready") == 1 and phases.seen[-1] == "ready":
            assert keeper.child is not None
            first.append(keeper.child.process)
            keeper.unload()
            keeper.wake()

    async with kept(on_change=turn_over) as (keeper, phases, _):
        keeper.wake()
        await phases.wait("ready", 2)
        assert [process.returncode for process in first] == [0]
        assert keeper.child is not None
        assert keeper.child.process.returncode is None


async def test_what_cannot_be_loaded_has_its_reason() -> None:
    """And a pause in which asking again changes nothing; it is no end of anything."""
    async with kept("--name=tiny", "--", "/no/such/folder") as (keeper, phases, budget):
        keeper.wake()
        await phases.wait("failed")
        state = keeper.state(3)
        assert "'/no/such/folder' is neither" in state.reason
        assert (state.orders_seen, state.lacks_room, state.retry_after_s) == (3, False, 1)
        keeper.wake()
        assert phases.seen == ["loading", "loading", "failed"]
        assert not budget.holds("tiny/0")
        keeper.unload()
        assert keeper.phase == "failed"


async def test_what_never_fits_is_not_loaded() -> None:
    """Its process ends before it reads a weight."""
    async with kept("--name=tiny", "--kv-cache-mb=900", "--", "builtin:tiny", memory_mb=600) as (
        keeper,
        phases,
        _,
    ):
        keeper.wake()
        await phases.wait("failed")
        assert "KV pool" in keeper.state(0).reason
        assert "engines.memory_mb allows 600" in keeper.state(0).reason
        assert keeper.child is not None
        assert keeper.child.process.returncode is not None


async def test_one_that_must_run_and_is_refused_ends_everything() -> None:
    """It is a mistake in the config; nobody may be there to ask for the model."""
    with pytest.raises(ExceptionGroup) as raised:
        async with kept("--name=tiny", "--", "/no/such/folder", on_first_use=False) as (_, phases, _):
            await phases.wait("ready")
    assert raised.group_contains(ConfigurationError, match="tiny/0 refused to start")


async def test_one_that_must_run_may_still_be_put_to_sleep() -> None:
    """After that it is woken as any other, at its old address."""
    async with kept(on_first_use=False) as (keeper, phases, _):
        await phases.wait("ready")
        address = local_url(keeper.spec.listener)
        keeper.unload()
        await phases.wait("asleep")
        keeper.wake()
        await phases.wait("ready")
        assert local_url(keeper.spec.listener) == address
        assert phases.seen[0] == "loading"


async def test_an_engine_that_dies_is_started_anew() -> None:
    """It keeps its place in the memory meanwhile."""
    async with kept() as (keeper, phases, budget):
        keeper.wake()
        await phases.wait("ready")
        assert keeper.child is not None
        keeper.child.kill()
        await phases.wait("loading")
        assert budget.holds("tiny/0")
        await phases.wait("ready")
        assert "failed" not in phases.seen
