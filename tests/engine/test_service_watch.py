"""A stuck engine seen from its door: requests end, new ones are refused, nobody waits for the thread."""

from __future__ import annotations

import asyncio

import pytest

from loop_turns import until
from penstock.base.errors import EngineError
from penstock.engine.sequence import FinishReason, Output
from penstock.engine.service import EngineService, TokenStream
from penstock.engine.watchdog import POLL_S
from tiny_engine import CountingForward, GatedForward, greedy, scripted_core

GUARD_S = 30  # only a hanging engine gets here


async def at_once(seconds: float) -> None:
    """A pause that takes no time: the engine's thread stands still, so looks need none between them."""
    assert seconds == POLL_S
    await asyncio.sleep(0)


async def collect(stream: TokenStream) -> list[Output]:
    """All outputs of a stream."""
    async with asyncio.timeout(GUARD_S):
        return [output async for output in stream]


async def begun(runner: GatedForward) -> None:
    """Waits until the runner is inside a step."""
    assert await asyncio.to_thread(runner.begun.acquire, timeout=GUARD_S)


async def test_a_stuck_step_ends_every_request_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Running and waiting ones, while the thread still hangs; the log says what was in the step and where."""
    runner = GatedForward()
    service = EngineService(scripted_core(runner, max_sequences=2), 10)
    service.start()
    streams = [service.submit([3, 4, 5], greedy(9)) for _ in range(3)]
    await begun(runner)
    runner.gate.release()
    await begun(runner)  # by now all three are there, and two of them in the step
    assert service.refusal is None
    async with asyncio.timeout(GUARD_S):
        await service.watch(30.0, at_once)
        await service.wait_stopped()
    for stream in streams:
        *_, end = await collect(stream)
        assert end.finish is FinishReason.ERROR
        assert isinstance(end.error, EngineError)
        assert "30 s" in end.error.message
    assert service.is_stuck
    assert service.is_alive
    assert service.refusal == "the engine is stuck"
    with pytest.raises(EngineError, match="stuck"):
        service.submit([3], greedy(1))
    (line,) = [record for record in caplog.records if record.message == "engine stuck"]
    assert line.num_sequences == 2
    assert line.num_tokens in (2, 4, 6)
    assert line.num_requests == 3
    assert "self.gate.acquire()" in line.stack
    await service.stop()  # which does not wait for the thread
    assert service.is_alive
    runner.gate.release(1000)
    async with asyncio.timeout(GUARD_S):
        await until(lambda: not service.is_alive)
    assert len(runner.ran) == 2  # a thread that comes back computes nothing more, and what it had is dropped
    await asyncio.sleep(0)


async def test_an_idle_engine_rests_and_is_left_alone() -> None:
    """Its thread sleeps until a command comes; watching it gives nothing up."""
    service = EngineService(scripted_core(CountingForward()), 10)
    service.start()
    async with asyncio.timeout(GUARD_S):
        assert len(await collect(service.submit([3], greedy(4)))) == 4
        await until(lambda: service.core.pulse.is_resting)
    num_looks = 0

    async def wait(seconds: float) -> None:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 100:
            raise TimeoutError
        await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await service.watch(1.0, wait)
    assert service.refusal is None
    assert len(await collect(service.submit([3], greedy(4)))) == 4
    await service.stop()
    assert service.core.pulse.is_resting
    assert service.refusal == "the engine is not running"
