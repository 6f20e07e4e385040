"""Several answers to one prompt: the prompt is computed once, whatever happens to the first of them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from penstock.base.errors import InvalidRequestError, QueueFullError
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import FinishReason, Sequence, Status
from penstock.engine.service import EngineService
from tiny_engine import CountingForward, build_core, greedy, new_tokens, run_to_end, scripted_core

PROMPT = list(range(1, 40))


def family(count: int, length: int = 39) -> list[Sequence]:
    """Sequences of one prompt and of different seeds."""
    return [
        Sequence(i, PROMPT[:length], SamplingParams(max_tokens=12, seed=i, temperature=1.3))
        for i in range(count)
    ]


@pytest.mark.parametrize("max_batch_tokens", [7, 64])
def test_the_prompt_is_computed_once(checkpoint: Path, max_batch_tokens: int) -> None:
    """Only the end of it, which fills no block, by each; and every answer is what it is alone."""
    alone = {one.id: new_tokens(run_to_end(build_core(checkpoint), [one]))[one.id] for one in family(4)}
    core = build_core(checkpoint, block_size=4, max_batch_tokens=max_batch_tokens)
    first, *others = family(4)
    core.add(first, others)
    assert [one.status for one in others] == [Status.HELD] * 3
    assert new_tokens(run_to_end(core)) == alone
    assert core.stats().prompt_tokens == 39 + 3 * 3


def test_a_family_without_a_cache_runs_at_once(checkpoint: Path) -> None:
    """There is nothing to wait for."""
    core = scripted_core(CountingForward(), prefix_cache=False)
    first, *others = family(3, length=5)
    core.add(first, others)
    assert all(one.status is Status.WAITING for one in others)
    assert set(new_tokens(run_to_end(core))) == {0, 1, 2}


@pytest.mark.parametrize("cancelled", [0, 1, 3])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_any_member_may_leave_at_any_time(cancelled: int, steps: int) -> None:
    """The others get their answers; without the first the next ones compute the prompt."""
    core = scripted_core(CountingForward(), max_batch_tokens=16)
    first, *others = family(4)
    core.add(first, others)
    outputs = []
    for _ in range(steps):
        outputs += core.step()
    output = core.cancel(cancelled)
    assert output is not None
    assert output.finish is FinishReason.CANCELLED
    core.scheduler.check()
    outputs += run_to_end(core)
    ended = {one.sequence_id: one.finish for one in outputs if one.finish is not None}
    assert ended == {i: FinishReason.LENGTH for i in range(4) if i != cancelled}


def test_a_family_under_preemption_and_deadlines_ends_whole(checkpoint: Path) -> None:
    """Members are thrown out, come back, are late; nobody waits for ever."""
    rng = random.Random(4)
    now = 0.0
    core = build_core(checkpoint, block_size=4, num_blocks=20, max_batch_tokens=16)
    core.clock = lambda: now
    members = []
    for group in range(4):
        made = [
            Sequence(
                10 * group + i,
                PROMPT[group : group + 20],
                SamplingParams(max_tokens=20, temperature=1.3, seed=i),
                deadline=rng.choice([float("inf"), 30.0]),
            )
            for i in range(3)
        ]
        core.add(made[0], made[1:])
        members += made
    ended = set()
    while core.has_work:
        now += 1.0
        ended |= {one.sequence_id for one in core.step() if one.finish is not None}
        core.scheduler.check()
    assert ended == {one.id for one in members}
    assert core.stats().num_preemptions > 0


async def test_a_group_counts_as_many_requests() -> None:
    """One that would not fit is refused whole; one that never fits is the client's fault."""
    service = EngineService(scripted_core(CountingForward()), max_requests=5)
    service.start()
    try:
        streams = service.submit_group([1, 2, 3], [greedy(30)] * 3)
        with pytest.raises(QueueFullError):
            service.submit_group([1, 2, 3], [greedy(3)] * 3)
        with pytest.raises(InvalidRequestError, match="6 answers"):
            service.submit_group([1, 2, 3], [greedy(3)] * 6)
        assert service.num_requests == 3
        for stream in streams:
            async with asyncio.timeout(30), stream:
                tokens = [output.token async for output in stream]
            assert len(tokens) == 30
    finally:
        await service.stop()


async def test_work_runs_between_steps_and_its_result_comes_back() -> None:
    """Also what it raises; and when the engine stops, nobody waits for it."""
    service = EngineService(scripted_core(CountingForward()), max_requests=5)
    service.start()
    assert await service.call(lambda core: core.stats().num_steps) == 0

    def fail(core: object) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await service.call(fail)
    (stream,) = service.submit_group([1, 2, 3], [greedy(30)])
    async with stream:
        moved = await service.move(stream)
        if moved is not None:  # else it was faster
            outputs = [output async for output in stream]
            assert outputs[-1].finish is FinishReason.MOVED
            assert moved.tokens[:3] == [1, 2, 3]
            assert moved.num_generated == len(outputs) - 1
    await service.stop()
