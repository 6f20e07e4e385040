"""Texts to vectors, whatever the model: the contract, the way through a decoder's engine, what both share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.base.errors import (
    ClientGoneError,
    ContextLengthError,
    DeadlineExceededError,
    EngineError,
    InvalidRequestError,
    QueueFullError,
)
from penstock.engine.pooling import Pooled, Pooling, Vector
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import FinishReason
from penstock.engine.service import EngineService
from penstock.replica.model import CHARACTERS_PER_TOKEN, Served

# Pause before asking a full queue again: nothing announces a free place in it.
RETRY_S = 0.05
# What is tokenised in one go, some tenths of a second at most.
TURN_CHARACTERS = 1 << 18
_PROMPT_ONLY = SamplingParams(max_tokens=0, temperature=0.0)
T = TypeVar("T")


class Embedder(Protocol):
    """What embeds; `penstock.engine.encoder_service.EncoderService` is one."""

    def now(self) -> float:
        """Seconds on the clock by which deadlines are given."""
        ...

    def refuse_if_full(self) -> None:
        """Raises QueueFullError if a request could not be taken now."""
        ...

    async def embed(self, texts: Sequence[Sequence[int]], pooling: Pooling, deadline: float) -> list[Vector]:
        """The vector of each text, given as token ids, in their order; not normalised."""
        ...


class DecoderEmbedder:
    """Embeds with a model that generates: each text is a sequence without an answer, batched with others."""

    def __init__(self, service: EngineService) -> None:
        self._service = service
        # All embedding together leaves half of a step's places to those who wait for tokens. Requests get
        # them in turn: who has had one goes behind those who wait.
        self._num_places = max(1, service.core.limits.max_sequences // 2)
        self._places = asyncio.Semaphore(self._num_places)
        self._num_open = 0

    def now(self) -> float:
        """See Embedder."""
        return self._service.now()

    def refuse_if_full(self) -> None:
        """See Embedder."""
        self._service.refuse_if_full()
        if self._num_open >= self._service.max_requests:
            raise QueueFullError(
                f"{self._num_open} requests for embeddings are open; the limit is "
                f"{self._service.max_requests}; try again later",
                retry_after_s=1,
            )

    async def embed(self, texts: Sequence[Sequence[int]], pooling: Pooling, deadline: float) -> list[Vector]:
        """See Embedder. A request that was taken waits for places, however many texts it has.

        Raises:
            QueueFullError: the engine's queue is full, or too many such requests wait.
            DeadlineExceededError: `deadline` has passed.
            EngineError: the engine failed on one of the texts.
        """
        self.refuse_if_full()
        vectors: dict[int, Vector] = {}
        left = iter(enumerate(texts))

        async def work() -> None:
            for index, tokens in left:
                async with self._places:
                    vectors[index] = await self._embed(tokens, pooling, deadline)

        self._num_open += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(len(texts), self._num_places)):
                    tasks.create_task(work())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._num_open -= 1
        return [vectors[index] for index in range(len(texts))]

    async def _embed(self, tokens: Sequence[int], pooling: Pooling, deadline: float) -> Vector:
        readout = Pooled(pooling, len(tokens))
        while True:
            try:
                stream = self._service.submit(tokens, _PROMPT_ONLY, deadline=deadline, readout=readout)
                break
            except QueueFullError:  # of requests to generate: embedding leaves half of the places
                if self.now() >= deadline:
                    text = "the request's time was up before all texts were computed"
                    raise DeadlineExceededError(text) from None
                await asyncio.sleep(RETRY_S)
        async with stream:
            async for output in stream:
                if output.error is not None:
                    raise output.error
                if output.finish is FinishReason.CANCELLED:
                    raise ClientGoneError("the request was cancelled")
        return readout.vector


def finish(vectors: Sequence[Vector], size: int | None, *, normalise: bool) -> NDArray[np.float32]:
    """Vectors as they are given out, (n, size): cut to `size`, then brought to length 1. A zero vector stays.

    Raises:
        EngineError: a vector holds what is no number.
    """
    matrix = np.stack(vectors)[:, :size]
    if not np.isfinite(matrix).all():
        raise EngineError("the model computed states that are no numbers; try dtype float32")
    if not normalise:
        return matrix
    lengths = np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    unit: NDArray[np.float32] = (matrix / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


async def encode_in_turns(
    sizes: Sequence[int],
    encode: Callable[[int, int], Sequence[T]],
    now: Callable[[], float],
    deadline: float,
) -> list[T]:
    """Tokenises texts off the event loop, so many at a time that other requests have the threads in between.

    Args:
        sizes: of each text, in characters or tokens.
        encode: called with (start, end); gives what texts [start, end) become, and raises what it likes.
        now: the clock of `deadline`.

    Raises:
        DeadlineExceededError: `deadline` has passed.
    """
    found: list[T] = []
    while (start := len(found)) < len(sizes):
        if now() >= deadline:
            raise DeadlineExceededError("the request's time was up before all texts were tokenised")
        end, size = start + 1, sizes[start]
        while end < len(sizes) and size + sizes[end] <= TURN_CHARACTERS:
            size += sizes[end]
            end += 1
        found += await asyncio.to_thread(encode, start, end)
    return found


def encode_text(model: Served, text: str, param: str, limit: int | None = None) -> list[int]:
    """Token ids of a text with the special tokens around it, at most `limit`; None for no cut.

    Raises:
        ContextLengthError: it is longer than the model takes.
        InvalidRequestError: there is no token in it.
    """
    if limit is None:
        model.refuse_long_text(len(text), param)
        ids = model.tokenizer.encode(text, add_special_tokens=True)
    else:
        limit = min(limit, model.max_model_len)
        ids = model.tokenizer.encode_start(text[: limit * CHARACTERS_PER_TOKEN], limit)
    refuse_long(model, len(ids), param)
    if not ids:
        raise InvalidRequestError(f"{param!r} has no tokens", param=param)
    return ids


def refuse_long(model: Served, num_tokens: int, param: str) -> None:
    """Raises ContextLengthError if a text of so many tokens is longer than the model takes."""
    if num_tokens > model.max_model_len:
        raise ContextLengthError(
            f"{param!r} has {num_tokens} tokens; the model takes {model.max_model_len}. "
            "Shorten it, or have it cut",
            param=param,
        )


def refuse_unknown_tokens(model: Served, tokens: Sequence[int], param: str) -> None:
    """Raises InvalidRequestError if one of these ids, none of them negative, is no token of the model."""
    unknown = {token for token in set(tokens) if model.tokenizer.token(token) is None}
    for index, token in enumerate(tokens if unknown else ()):
        if token in unknown:
            where = f"{param}[{index}]"
            raise InvalidRequestError(f"{where!r} is {token}, which is no token of the model", param=where)
