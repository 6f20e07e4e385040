"""The engine's asynchronous door: every request ends exactly once, and leaving a stream frees it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.base.errors import ContextLengthError, DeadlineExceededError, EngineError, QueueFullError
from penstock.engine.core import EngineCore
from penstock.engine.sequence import FinishReason, Output, Priority, Sequence
from penstock.engine.service import EngineService, TokenStream
from tiny_engine import (
    CountingForward,
    FailingForward,
    GatedForward,
    build_core,
    greedy,
    new_tokens,
    run_to_end,
    scripted_core,
)

GUARD_S = 30  # only a hanging engine gets here


@contextlib.asynccontextmanager
async def serving(core: EngineCore, max_requests: int = 200) -> AsyncIterator[EngineService]:
    """A started service that is stopped in the end."""
    service = EngineService(core, max_requests)
    service.start()
    try:
        yield service
    finally:
        if isinstance(core.runner, GatedForward):
            core.runner.gate.release(1000)
        await service.stop()


async def begun(runner: GatedForward) -> None:
    """Waits until the runner is inside a step."""
    assert await asyncio.to_thread(runner.begun.acquire, timeout=GUARD_S)


async def collect(stream: TokenStream) -> list[Output]:
    """All outputs of a stream."""
    async with asyncio.timeout(GUARD_S):
        return [output async for output in stream]


def only_end(outputs: list[Output]) -> Output:
    """The terminal output; there must be one and it must be the last."""
    assert [output.finish is not None for output in outputs] == [False] * (len(outputs) - 1) + [True]
    return outputs[-1]


async def test_a_stream_gives_the_tokens_and_then_the_end() -> None:
    """In order, one output per token, the last with the reason."""
    async with (
        serving(scripted_core(CountingForward())) as service,
        service.submit([3, 4], greedy(4)) as stream,
    ):
        outputs = await collect(stream)
        assert [output.token for output in outputs] == [5, 6, 7, 8]
        assert only_end(outputs).finish is FinishReason.LENGTH
        assert stream.is_finished
        assert service.num_requests == 0


async def test_a_finished_stream_gives_nothing_more() -> None:
    """A second iteration ends at once instead of waiting for ever."""
    async with serving(scripted_core(CountingForward())) as service, service.submit([3], greedy(2)) as stream:
        assert len(await collect(stream)) == 2
        assert await collect(stream) == []


async def test_leaving_the_block_frees_the_sequence_before_the_next_step() -> None:
    """At most the step that is under way is computed for someone who has gone."""
    runner = GatedForward()
    core = scripted_core(runner)
    async with serving(core) as service:
        async with service.submit([3], greedy(40)) as left, service.submit([9], greedy(4)) as other:
            await begun(runner)
            left_id = left.sequence_id
            await left.__aexit__(None, None, None)
            runner.gate.release(1000)
            outputs = await collect(other)
        assert only_end(outputs).finish is FinishReason.LENGTH
        assert sum(left_id in ids for ids in runner.ran) <= 1
        assert service.num_requests == 0
        assert core.stats().num_held_blocks == 0


async def test_a_cancelled_task_frees_its_sequence() -> None:
    """The way in which a client's disconnect arrives: as a cancellation inside the `async with` block."""
    runner = GatedForward()
    async with serving(scripted_core(runner)) as service:

        async def consume() -> None:
            async with service.submit([3], greedy(40)) as stream:
                await collect(stream)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(consume())
            await begun(runner)
            task.cancel()
        assert task.cancelled()
        runner.gate.release(1000)
        assert len(await collect(service.submit([3], greedy(2)))) == 2
        assert sum(1 in ids for ids in runner.ran) == 1
        assert service.num_requests == 0


async def test_cancelling_in_the_queue_never_runs_the_request() -> None:
    """A request that waits costs nothing and ends with one output."""
    runner = GatedForward()
    async with serving(scripted_core(runner, max_sequences=1)) as service:
        running = service.submit([3], greedy(3))
        await begun(runner)
        waiting = service.submit([3], greedy(3))
        waiting.cancel()
        runner.gate.release(1000)
        assert only_end(await collect(waiting)) == Output(waiting.sequence_id, finish=FinishReason.CANCELLED)
        assert len(await collect(running)) == 3
        assert all(waiting.sequence_id not in ids for ids in runner.ran)


async def test_cancelling_twice_or_after_the_end_does_nothing() -> None:
    """A client may leave while its last token is on the way."""
    async with serving(scripted_core(CountingForward())) as service:
        stream = service.submit([3], greedy(2))
        outputs = await collect(stream)
        stream.cancel()
        service.cancel(stream.sequence_id)
        service.cancel(10_000)
        assert len(outputs) == 2
        assert len(await collect(service.submit([3], greedy(2)))) == 2


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    """Running and waiting together are bounded; a place becomes free when a request ends."""
    runner, now = GatedForward(), [100.0]
    core = scripted_core(runner, max_sequences=1, clock=lambda: now[0])
    async with serving(core, max_requests=2) as service:
        first, second = service.submit([3], greedy(1)), service.submit([3], greedy(1))
        now[0] = 107.0  # nothing has ended in the seven seconds since there is work
        with pytest.raises(QueueFullError, match="2 requests") as caught:
            service.submit([3], greedy(1))
        assert caught.value.retry_after_s == 7
        runner.gate.release(1000)
        await collect(first)
        assert len(await collect(service.submit([3], greedy(1)))) == 1
        await collect(second)


async def test_a_request_carries_its_priority_deadline_and_salt() -> None:
    """As the scheduler sees them; its time of arrival is that of the submission."""
    runner, now = GatedForward(), [100.0]
    core = scripted_core(runner, max_sequences=1, clock=lambda: now[0])
    async with serving(core) as service:
        first = service.submit([3], greedy(2))
        await begun(runner)
        now[0] = 101.0
        normal = service.submit([3] * 9, greedy(1), cache_salt="s", deadline=service.now() + 8.0)
        high = service.submit([3] * 9, greedy(1), priority=Priority.HIGH, cache_salt="s")
        runner.gate.release(1000)
        for stream in (first, high, normal):
            await collect(stream)
        assert [ids for ids in runner.ran if first.sequence_id not in ids] == [
            [high.sequence_id],
            [normal.sequence_id],
        ]
        assert (high.num_cached_tokens, normal.num_cached_tokens) == (0, 8)


async def test_a_request_past_its_deadline_ends_with_that_error() -> None:
    """Before it costs a step."""
    runner = CountingForward()
    async with serving(scripted_core(runner, clock=lambda: 100.0)) as service:
        end = only_end(await collect(service.submit([3], greedy(2), deadline=100.0)))
        assert isinstance(end.error, DeadlineExceededError)
        assert runner.ran == []


@pytest.mark.parametrize("length", [64, 65, 1000])
async def test_a_prompt_that_leaves_no_room_is_refused_with_both_lengths(length: int) -> None:
    """The user sees what was sent and what fits."""
    async with serving(scripted_core(CountingForward(), max_model_len=64)) as service:
        with pytest.raises(ContextLengthError, match=rf"\b{length} tokens.*\b64\b"):
            service.submit([3] * length, greedy(1))
        assert service.num_requests == 0


async def test_the_longest_prompt_gets_one_token() -> None:
    """One below the bound is inside."""
    async with serving(scripted_core(CountingForward(), max_model_len=64)) as service:
        outputs = await collect(service.submit([3] * 63, greedy(10)))
        assert [output.token for output in outputs] == [4]


async def test_stopping_ends_open_streams_once_with_an_error() -> None:
    """Running and waiting ones alike; and nothing can be submitted afterwards."""
    runner = GatedForward()
    core = scripted_core(runner, max_sequences=2)
    service = EngineService(core, 10)
    service.start()
    streams = [service.submit([3], greedy(1000)) for _ in range(5)]
    await begun(runner)
    runner.gate.release(1)
    await begun(runner)
    async with asyncio.TaskGroup() as group:
        group.create_task(service.stop())
        asyncio.get_running_loop().call_soon(runner.gate.release, 1000)  # after the stop command is in
    for stream in streams:
        end = only_end(await collect(stream))
        assert end.finish is FinishReason.ERROR
        assert isinstance(end.error, EngineError)
    assert not service.is_alive
    assert service.num_requests == 0
    with pytest.raises(EngineError, match="not running"):
        service.submit([3], greedy(1))
    await service.stop()  # once more does nothing


async def test_a_service_that_was_not_started_refuses() -> None:
    """Instead of queueing for a thread that will never come."""
    service = EngineService(scripted_core(CountingForward()), 10)
    with pytest.raises(EngineError, match="not running"):
        service.submit([3], greedy(1))
    await service.stop()


async def test_a_hundred_streams_each_end_exactly_once() -> None:
    """Some read to the end, some leave at once, some after a few tokens."""
    core = scripted_core(CountingForward(), num_blocks=40)
    rng = random.Random(1)

    async def client(service: EngineService, patience: int, max_tokens: int) -> list[Output]:
        outputs = []
        async with service.submit([3] * rng.randint(1, 20), greedy(max_tokens)) as stream:
            async for output in stream:
                outputs.append(output)
                if len(outputs) == patience:
                    stream.cancel()
        return outputs

    async with serving(core) as service:
        plans = [(rng.choice([1, 3, 1000]), rng.randint(1, 30)) for _ in range(100)]
        async with asyncio.timeout(GUARD_S):
            results = await asyncio.gather(*(client(service, *plan) for plan in plans))
        for (patience, max_tokens), outputs in zip(plans, results, strict=True):
            end = only_end(outputs)
            assert end.finish in (FinishReason.LENGTH, FinishReason.CANCELLED)
            if patience > max_tokens:
                assert len(outputs) == max_tokens
        assert service.num_requests == 0
        assert core.stats().num_held_blocks == 0


async def test_an_idle_engine_takes_no_steps() -> None:
    """It sleeps until a command comes; commands about nothing wake it and still make no step."""
    async with serving(scripted_core(CountingForward())) as service:
        await collect(service.submit([3], greedy(4)))
        assert service.stats().num_steps == 4
        for identity in range(50, 150):
            service.cancel(identity)
        await collect(service.submit([3], greedy(1)))
        assert service.stats().num_steps == 5


async def test_a_failing_step_reaches_its_streams_and_no_others() -> None:
    """The thread lives on and serves the next request."""
    core = scripted_core(FailingForward(lambda plan: plan.chunks[0].sequence.id == 1), max_sequences=1)
    async with serving(core) as service:
        bad, good = service.submit([3], greedy(2)), service.submit([3], greedy(2))
        end = only_end(await collect(bad))
        assert isinstance(end.error, EngineError)
        assert [output.token for output in await collect(good)] == [4, 5]
        assert service.is_alive


class BrokenCore(EngineCore):
    """A core whose step is a defect of ours, as soon as it is let through."""

    gate = threading.Semaphore(0)

    def step(self) -> list[Output]:
        """Raises."""
        self.gate.acquire()
        raise RuntimeError("scripted defect")


async def test_a_broken_engine_ends_its_streams_and_refuses_new_ones() -> None:
    """Nobody waits for a thread that is gone, and health checks can see it."""
    model = scripted_core(CountingForward())
    core = BrokenCore(model.runner, model.limits, 4, 4)
    service = EngineService(core, 10)
    service.start()
    streams = [service.submit([3], greedy(2)) for _ in range(3)]
    core.gate.release()
    for stream in streams:
        end = only_end(await collect(stream))
        assert isinstance(end.error, EngineError)
        assert "broke down" in end.error.message
    with pytest.raises(EngineError, match="not running"):
        service.submit([3], greedy(1))
    await service.stop()
    assert not service.is_alive


class LingeringService(EngineService):
    """A service whose thread lives on for a while after it has closed the streams."""

    lingers = threading.Semaphore(0)

    def _run(self) -> None:
        super()._run()
        self.lingers.acquire()


async def test_nothing_is_accepted_between_the_end_of_the_streams_and_of_the_thread() -> None:
    """Nobody would ever end a stream made then."""
    model = scripted_core(CountingForward())
    core = BrokenCore(model.runner, model.limits, 4, 4)
    core.gate.release()
    service = LingeringService(core, 10)
    service.start()
    only_end(await collect(service.submit([3], greedy(2))))
    assert service.is_alive
    with pytest.raises(EngineError, match="not running"):
        service.submit([3], greedy(1))
    service.lingers.release()
    await service.stop()


async def test_streams_give_what_the_core_gives(checkpoint: Path) -> None:
    """A real model behind the door, twelve clients at once."""
    prompts = [list(range(1, 2 + 3 * index)) for index in range(12)]
    direct = new_tokens(
        run_to_end(
            build_core(checkpoint), [Sequence(index, list(p), greedy(10)) for index, p in enumerate(prompts)]
        )
    )
    async with serving(build_core(checkpoint, max_sequences=5)) as service:
        served = await asyncio.gather(*(collect(service.submit(p, greedy(10))) for p in prompts))
    assert [[output.token for output in outputs] for outputs in served] == list(direct.values())


async def test_a_stopped_service_does_not_change_the_prompt() -> None:
    """The caller's list is copied: generation must not append to it."""
    prompt = [3, 4]
    async with serving(scripted_core(CountingForward())) as service:
        await collect(service.submit(prompt, greedy(3)))
    assert prompt == [3, 4]


def test_a_loop_closed_under_the_engine_ends_its_thread() -> None:
    """An application that dies without stopping leaves no thread that raises."""
    runner = GatedForward()
    service = EngineService(scripted_core(runner), 10)

    async def leave() -> None:
        service.start()
        service.submit([3], greedy(5))
        await begun(runner)

    asyncio.run(leave())
    runner.gate.release(1000)
    for thread in threading.enumerate():
        if thread.name == "engine":
            thread.join(GUARD_S)
    assert not service.is_alive


async def test_a_broken_engine_ends_its_thread_and_says_so() -> None:
    """The process can then end and be started anew, instead of failing every request for ever."""
    core = scripted_core(FailingForward(lambda plan: True))
    async with serving(core) as service, asyncio.timeout(GUARD_S):
        for _ in range(3):
            async with service.submit([3], greedy(2)) as stream:
                assert only_end([output async for output in stream]).finish is FinishReason.ERROR
        await service.wait_stopped()
        with pytest.raises(EngineError, match="not running"):
            service.submit([3], greedy(1))
