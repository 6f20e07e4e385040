"""Answers one generation request, streamed or whole, in the legal order of `protocol.stream`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.asgi.exchange import Exchange, unless_gone
from penstock.base.errors import PenstockError
from penstock.engine.sampling import SamplingParams
from penstock.protocol import sse
from penstock.protocol.envelope import encode_error
from penstock.protocol.stream import Event, StreamOrder
from penstock.replica.generation import Generation
from penstock.replica.model import ServedModel
from penstock.replica.shapes import Shape


@dataclass(frozen=True, slots=True)
class Job:
    """A request, read and checked."""

    prompt: Sequence[int]
    sampling: SamplingParams
    stops: Sequence[str]
    shape: Shape
    streams: bool
    include_usage: bool
    user: str | None
    cache_salt: str
    deadline: float
    """Seconds on the engine's clock; inf for none."""


async def answer(
    exchange: Exchange, model: ServedModel, job: Job, on_first_token: Callable[[], None]
) -> None:
    """Runs the job and answers the exchange; the engine lets go of it at the latest when this returns."""

    async def generate() -> None:
        async with model.service.submit(
            job.prompt, job.sampling, deadline=job.deadline, cache_salt=job.cache_salt
        ) as stream:
            generation = Generation(stream, model.tokenizer, job.stops, len(job.prompt))
            try:
                await (_stream if job.streams else _whole)(exchange, job, generation, on_first_token)
            finally:
                usage = generation.usage
                exchange.log_fields |= {
                    **({"user": job.user} if job.user is not None else {}),
                    "model": model.name,
                    "prompt_tokens": usage.prompt_tokens,
                    "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "finish_reason": generation.finish_reason,
                }

    await unless_gone(exchange, generate())


async def _whole(
    exchange: Exchange, job: Job, generation: Generation, on_first_token: Callable[[], None]
) -> None:
    text: list[str] = []
    async for piece in generation.pieces():
        if not text:
            on_first_token()
        text.append(piece)
    assert generation.finish_reason is not None
    await exchange.respond(200, job.shape.whole("".join(text), generation.finish_reason, generation.usage))


async def _stream(
    exchange: Exchange, job: Job, generation: Generation, on_first_token: Callable[[], None]
) -> None:
    """The head waits for the first token, so that what fails before it has a status of its own."""
    writer = _EventWriter(exchange)
    try:
        async for piece in generation.pieces():
            if not exchange.has_started:
                on_first_token()
                await writer.open(job.shape)
            if piece:
                await writer.write(Event.CONTENT, job.shape.piece(piece))
        assert generation.finish_reason is not None
        await writer.write(Event.FINISH, job.shape.finish(generation.finish_reason))
        if job.include_usage:
            await writer.write(Event.USAGE, job.shape.usage(generation.usage))
        await writer.close()
    except Exception as error:
        if not exchange.has_started:
            raise
        await writer.fail(error)
        if not isinstance(error, PenstockError):
            raise  # a defect: the application logs it with its traceback
        exchange.log_fields |= {"error": error.code, "message": error.message}


class _EventWriter:
    """Writes events and holds itself to the legal order."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._order = StreamOrder()

    async def open(self, shape: Shape) -> None:
        await self._exchange.start(
            200, [(b"content-type", sse.CONTENT_TYPE), (b"cache-control", b"no-cache")]
        )
        if (opening := shape.opening()) is not None:
            await self.write(Event.ROLE, opening)

    async def write(self, event: Event, data: bytes) -> None:
        self._order.advance(event)
        await self._exchange.write(sse.encode_event(data))

    async def close(self) -> None:
        self._order.advance(Event.DONE)
        await self._exchange.finish(sse.DONE)

    async def fail(self, error: Exception) -> None:
        self._order.advance(Event.ERROR)
        await self._exchange.finish(sse.encode_event(encode_error(error)))
