"""The encoder's door: requests end exactly once; leaving, lateness, a full queue, a stuck thread."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from loop_turns import until
from penstock.base.errors import DeadlineExceededError, EngineError, QueueFullError
from penstock.engine.encoder import Encoder, EncoderBatch, EncoderInput
from penstock.engine.encoder_core import EncoderCore, EncoderLimits
from penstock.engine.encoder_service import EncoderService
from penstock.engine.pooling import Pooling
from penstock.engine.watchdog import POLL_S
from tiny_encoders import ENCODERS, SCORERS, read_encoder, write_encoder

GUARD_S = 30  # only a hanging engine gets here
LIMITS = EncoderLimits(max_texts=4, max_batch_tokens=64, max_text_tokens=66, max_requests=3)


class Gated(Encoder):
    """An encoder that says when a batch has begun and, once held, waits to be let through."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.spec)
        self.load_state_dict(encoder.state_dict())
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.is_broken = False

    def forward(self, batch: EncoderBatch) -> Tensor:
        """See Encoder."""
        self.begun.release()
        self.gate.acquire()
        if self.is_broken:
            raise RuntimeError("scripted failure")
        return super().forward(batch)

    async def wait_begun(self) -> None:
        """Waits until a batch is being computed."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=GUARD_S)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A tiny BERT."""
    directory = tmp_path_factory.mktemp("encoder")
    write_encoder(ENCODERS[0], directory)
    return read_encoder(directory)


@contextlib.asynccontextmanager
async def serving(encoder: Encoder, limits: EncoderLimits = LIMITS) -> AsyncIterator[EncoderService]:
    """A started service that is stopped in the end."""
    service = EncoderService(EncoderCore(encoder, limits))
    service.start()
    try:
        async with asyncio.timeout(GUARD_S):
            yield service
    finally:
        if isinstance(encoder, Gated):
            encoder.gate.release(1000)
        await service.stop()
    assert service.num_requests == 0


async def test_many_requests_at_once_get_their_own_vectors(plain: Encoder) -> None:
    """In order, each as if it were alone."""
    async with serving(plain) as service:
        given = [[[5 + i, 6, 7][: 1 + j % 3] for j in range(20)] for i in range(3)]
        answers = await asyncio.gather(*(service.embed(one, Pooling.CLS, math.inf) for one in given))
        for one, answer in zip(given, answers, strict=True):
            for text, vector in zip(one, answer, strict=True):
                (alone,) = await service.embed([text], Pooling.CLS, math.inf)
                np.testing.assert_allclose(vector, alone, atol=1e-6)


async def test_pairs_are_scored(tmp_path: Path) -> None:
    """With their segments."""
    write_encoder(SCORERS[0], tmp_path)
    async with serving(read_encoder(tmp_path)) as service:
        pair = EncoderInput([2, 5, 3, 6, 3], [0, 0, 0, 1, 1])
        both = await service.score([pair, EncoderInput(pair.tokens)], math.inf)
        assert len(both) == 2
        assert abs(both[0] - both[1]) > 1e-4
        assert await service.score([pair], math.inf) == pytest.approx([both[0]], abs=1e-6)


async def test_a_full_queue_refuses_and_takes_again(plain: Encoder) -> None:
    """With a time to come back."""
    gated = Gated(plain)
    async with serving(gated) as service, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(service.embed([[5]], Pooling.MEAN, math.inf)) for _ in range(3)]
        await gated.wait_begun()
        with pytest.raises(QueueFullError, match="limit is 3") as refused:
            await service.embed([[5]], Pooling.MEAN, math.inf)
        assert refused.value.retry_after_s is not None
        with pytest.raises(QueueFullError):
            service.refuse_if_full()
        gated.gate.release(1000)
        await asyncio.wait(running)
        assert len(await service.embed([[5]], Pooling.MEAN, math.inf)) == 1


async def test_a_request_that_is_left_gives_its_place_back(plain: Encoder) -> None:
    """And what is left of it is not computed."""
    gated = Gated(plain)
    async with serving(gated) as service:
        task = asyncio.ensure_future(service.embed([[5]] * 100, Pooling.MEAN, math.inf))
        await gated.wait_begun()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert service.num_requests == 0
        gated.gate.release(1000)
        await service.embed([[6]], Pooling.MEAN, math.inf)
        assert service.stats().prompt_tokens <= LIMITS.max_texts + 1


async def test_a_small_request_overtakes_a_large_one(plain: Encoder) -> None:
    """Two thousand texts do not keep one waiting."""
    gated = Gated(plain)
    async with serving(gated) as service:
        large = asyncio.ensure_future(service.embed([[5]] * 2000, Pooling.MEAN, math.inf))
        await gated.wait_begun()
        small = asyncio.ensure_future(service.embed([[6]], Pooling.MEAN, math.inf))
        await asyncio.sleep(0)
        gated.gate.release(3)
        await small
        assert not large.done()
        gated.gate.release(1000)
        assert len(await large) == 2000


async def test_a_request_past_its_deadline_ends(plain: Encoder) -> None:
    """With an error of its own."""
    async with serving(plain) as service:
        with pytest.raises(DeadlineExceededError):
            await service.embed([[5]], Pooling.MEAN, service.now() - 1)


async def test_stopping_ends_open_requests_and_refuses_new_ones(plain: Encoder) -> None:
    """With an error that says so."""
    gated = Gated(plain)
    service = EncoderService(EncoderCore(gated, LIMITS))
    assert service.refusal == "the engine is not running"
    service.start()
    open_one = asyncio.ensure_future(service.embed([[5]] * 50, Pooling.MEAN, math.inf))
    await gated.wait_begun()
    stopping = asyncio.ensure_future(service.stop())
    await asyncio.sleep(0)
    gated.gate.release(1000)
    await stopping
    with pytest.raises(EngineError, match="stopped"):
        await open_one
    with pytest.raises(EngineError, match="not running"):
        await service.embed([[5]], Pooling.MEAN, math.inf)
    await service.stop()


async def test_a_broken_encoder_ends_its_service(plain: Encoder) -> None:
    """After three requests that nothing could be computed of; whoever watches is told."""
    gated = Gated(plain)
    gated.is_broken = True
    gated.gate.release(1000)
    async with serving(gated) as service:
        for _ in range(3):
            with pytest.raises(EngineError):
                await service.embed([[5]], Pooling.MEAN, math.inf)
        await service.wait_stopped()
        await until(lambda: service.refusal is not None)
        with pytest.raises(EngineError, match="not running"):
            await service.embed([[5]], Pooling.MEAN, math.inf)


async def test_a_stuck_step_ends_every_request(plain: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    """The log says what was in it and where it hangs, without the text."""

    async def at_once(seconds: float) -> None:
        assert seconds == POLL_S
        await asyncio.sleep(0)

    gated = Gated(plain)
    async with serving(gated) as service:
        request = asyncio.ensure_future(service.embed([[5, 6, 7]], Pooling.MEAN, math.inf))
        await gated.wait_begun()
        await service.watch(30.0, at_once)
        with pytest.raises(EngineError, match="30 s"):
            await request
        assert service.refusal == "the engine is stuck"
        (line,) = [record for record in caplog.records if record.message == "engine stuck"]
        assert (line.num_texts, line.num_tokens) == (1, 3)
        assert "gate.acquire" in line.stack
