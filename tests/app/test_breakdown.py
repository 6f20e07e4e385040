"""A replica whose engine is stuck, seen by its clients, its probes and its process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loop_turns import until
from penstock.app.breakdown import leave_when_frozen, leave_when_stuck, stop_when_broken
from penstock.app.child import EXIT_STUCK
from penstock.asgi.server import StopRequest
from scripted_replica import Desk, replica, write_replica

GUARD_S = 30  # only a hanging test gets here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text side of the replica."""
    return write_replica(tmp_path_factory.mktemp("checkpoint"))


async def at_once(seconds: float) -> None:
    """A pause that takes no time: the engine's thread stands still."""
    await asyncio.sleep(0)


async def num_stuck(desk: Desk) -> float:
    """The counter, from the exposition."""
    text = (await desk.get("/metrics")).body.decode()
    (family,) = [f for f in text_string_to_metric_families(text) if f.name == "penstock_engine_stuck_steps"]
    return family.samples[0].value


async def let_go(desk: Desk) -> None:
    """Ends the thread that hung, and what it left in the engine: a process would be gone by now."""
    desk.forward.let()
    async with asyncio.timeout(GUARD_S):
        await until(lambda: not desk.model.service.is_alive)
    for sequence in (*desk.core.scheduler.running, *desk.core.scheduler.waiting):
        desk.core.cancel(sequence.id)


async def test_a_stuck_step_ends_the_answers_then_the_process(checkpoint: Path) -> None:
    """Those before their first byte with a status, those after it in band; readiness turns false, health as
    well, liveness stays; then the process leaves with the status that the supervisor knows.
    """
    statuses: list[int] = []
    async with replica(checkpoint, []) as desk, asyncio.TaskGroup() as tasks:
        stop = StopRequest()
        desk.forward.hold()
        streaming = desk.chat(stream=True)
        await desk.forward.begun()
        desk.forward.let(1)
        await desk.forward.begun()
        whole, streamed = desk.chat(), desk.complete(stream=True)
        assert (await desk.get("/readyz")).status == 200
        assert await num_stuck(desk) == 0
        await until(lambda: desk.model.service.num_requests == 3)
        tasks.create_task(stop_when_broken(desk.model.service, stop))
        await leave_when_stuck(desk.model.service, desk.drain, 5.0, statuses.append, at_once)
        assert statuses == [EXIT_STUCK]
        async with asyncio.timeout(GUARD_S):
            await stop.asked.wait()
        for call in (whole, streamed):
            answer = call.seen()
            assert (answer.status, answer.error["code"]) == (500, "engine_error")
            assert "stuck" in answer.error["message"]
        begun = streaming.seen()
        assert (begun.status, begun.is_complete) == (200, True)
        assert b'"engine_error"' in begun.events[-1]
        for path in ("/readyz", "/health"):
            answer = await desk.get(path)
            assert (answer.status, answer.error["code"]) == (503, "not_ready")
            assert "stuck" in answer.error["message"]
        assert (await desk.get("/livez")).status == 200
        assert await num_stuck(desk) == 1
        refused = await desk.chat().answer()
        assert (refused.status, refused.error["code"]) == (503, "draining")
        await let_go(desk)


async def test_a_client_that_does_not_read_keeps_no_process_alive(checkpoint: Path) -> None:
    """Its time is up, here from the start; a request that never ends stands for it."""
    statuses: list[int] = []
    async with replica(checkpoint, []) as desk:
        desk.forward.hold()
        call = desk.chat()
        await desk.forward.begun()
        with desk.drain:
            await leave_when_stuck(
                desk.model.service, desk.drain, 5.0, statuses.append, at_once, last_words_s=0.0
            )
            assert statuses == [EXIT_STUCK]
        assert (await call.answer()).status == 500
        await let_go(desk)


async def test_a_loop_that_turns_is_not_frozen() -> None:
    """And without a limit nothing is guarded."""
    await leave_when_frozen(0.0)
    async with asyncio.TaskGroup() as tasks:
        guard = tasks.create_task(leave_when_frozen(GUARD_S))
        await asyncio.sleep(0)
        assert not guard.done()
        guard.cancel()
