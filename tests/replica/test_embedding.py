"""Embeddings through a decoder's engine: places shared with generation, a full queue, no numbers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.base.errors import DeadlineExceededError, EngineError, QueueFullError
from penstock.engine.plan import StepPlan
from penstock.engine.pooling import Pooling
from penstock.engine.service import EngineService
from penstock.replica.embedding import TURN_CHARACTERS, DecoderEmbedder, encode_in_turns, finish
from tiny_engine import FailingForward, GatedForward, greedy, scripted_core

GUARD_S = 30  # only a hanging engine gets here


class Gated(GatedForward):
    """A gated forward pass with states: each position's is its token."""

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass."""
        self._tokens = [
            token for chunk in plan.chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]
        ]
        return super().run(plan)

    def states(self, start: int, end: int) -> Tensor:
        """See StepView."""
        return torch.tensor(self._tokens[start:end])[:, None].float()


@contextlib.asynccontextmanager
async def embedding(
    forward: Gated, max_requests: int
) -> AsyncIterator[tuple[DecoderEmbedder, EngineService]]:
    """A service of four sequences per step, stopped in the end."""
    service = EngineService(scripted_core(forward, max_sequences=4), max_requests)
    service.start()
    try:
        async with asyncio.timeout(GUARD_S):
            yield DecoderEmbedder(service), service
    finally:
        forward.gate.release(10_000)
        await service.stop()


async def begun(forward: Gated) -> None:
    """Waits until a step is being computed."""
    assert await asyncio.to_thread(forward.begun.acquire, timeout=GUARD_S)


TEXTS = [[1], [2, 4], [3]]


async def test_embeddings_leave_half_of_the_places() -> None:
    """Two requests of many texts together have two of four sequences in the engine."""
    forward = Gated()
    async with embedding(forward, 100) as (embedder, service):
        both = [asyncio.ensure_future(embedder.embed([[5]] * 50, Pooling.LAST, math.inf)) for _ in range(2)]
        await begun(forward)
        assert service.num_requests == 2
        forward.gate.release(10_000)
        assert [len(answer) for answer in await asyncio.gather(*both)] == [50, 50]
        assert max(map(len, forward.ran)) <= 2


async def test_a_full_queue_refuses_a_request_and_lets_one_that_was_taken_wait() -> None:
    """It is not lost because others have filled the queue meanwhile."""
    forward = Gated()
    async with embedding(forward, 2) as (embedder, service):
        first = service.submit([7], greedy(5))
        second = service.submit([7], greedy(5))
        with pytest.raises(QueueFullError):
            await embedder.embed(TEXTS, Pooling.MEAN, math.inf)
        with pytest.raises(QueueFullError):
            embedder.refuse_if_full()
        second.cancel()
        forward.gate.release()
        async for output in second:
            assert output is not None
        request = asyncio.ensure_future(embedder.embed(TEXTS, Pooling.MEAN, math.inf))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert service.num_requests == 2
        forward.gate.release(10_000)
        vectors = await request
        assert [vector.tolist() for vector in vectors] == [[1], [3], [3]]
        assert [output.token async for output in first] == [8, 9, 10, 11, 12]


async def test_a_request_that_waits_in_vain_is_late() -> None:
    """With the error of its deadline."""
    forward = Gated()
    async with embedding(forward, 2) as (embedder, service):
        held = service.submit([7], greedy(50))
        await begun(forward)
        with pytest.raises(DeadlineExceededError):
            await embedder.embed(TEXTS, Pooling.MEAN, service.now() + 0.2)
        held.cancel()


async def test_the_number_of_open_requests_is_bounded() -> None:
    """They wait here, not in the engine's queue."""
    forward = Gated()
    async with embedding(forward, 3) as (embedder, _):
        requests = [asyncio.ensure_future(embedder.embed(TEXTS, Pooling.CLS, math.inf)) for _ in range(3)]
        await begun(forward)
        with pytest.raises(QueueFullError, match="limit is 3") as refused:
            await embedder.embed(TEXTS, Pooling.CLS, math.inf)
        assert refused.value.retry_after_s
        forward.gate.release(10_000)
        for vectors in await asyncio.gather(*requests):
            assert [vector.tolist() for vector in vectors] == [[1], [2], [3]]
        assert len(await embedder.embed(TEXTS, Pooling.CLS, math.inf)) == 3


async def test_a_text_that_cannot_be_computed_fails_its_request() -> None:
    """With the engine's error, and nothing of it left."""
    service = EngineService(scripted_core(FailingForward(lambda plan: True)), 10)
    service.start()
    try:
        with pytest.raises(EngineError):
            await DecoderEmbedder(service).embed(TEXTS, Pooling.LAST, math.inf)
    finally:
        await service.stop()


def test_vectors_are_brought_to_length_one() -> None:
    """Tiny and huge ones too; zero stays zero."""
    vectors = [np.array(one, dtype=np.float32) for one in ([3, 4], [1e-20, 0], [3e30, 4e30], [0, 0])]
    unit = finish(vectors, None, normalise=True)
    np.testing.assert_allclose(unit[[0, 2]], [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6)
    assert unit[3].tolist() == [0, 0]
    assert finish(vectors, 1, normalise=False).tolist() == [[vector[0]] for vector in vectors]


def test_what_is_no_number_is_no_vector() -> None:
    """JSON has no word for it."""
    for bad in (np.nan, np.inf):
        with pytest.raises(EngineError, match="no numbers"):
            finish([np.array([1, bad], dtype=np.float32)], None, normalise=False)


async def test_texts_are_tokenised_in_turns() -> None:
    """Small ones together, large ones alone, in order; what was done by the deadline is in vain."""
    turns: list[tuple[int, int]] = []

    def encode(start: int, end: int) -> list[int]:
        turns.append((start, end))
        return list(range(start, end))

    half = TURN_CHARACTERS // 2
    sizes = [half, half, 1, TURN_CHARACTERS * 5, 0, 3]
    assert await encode_in_turns(sizes, encode, lambda: 0.0, 1.0) == [0, 1, 2, 3, 4, 5]
    assert turns == [(0, 2), (2, 3), (3, 4), (4, 6)]
    with pytest.raises(DeadlineExceededError):
        await encode_in_turns(sizes, encode, lambda: float(len(turns)), 6.0)
    assert len(turns) == 6
