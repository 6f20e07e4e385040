"""Answers one generation request, streamed or whole, in the legal order of `protocol.stream`.

A request has one prompt or several and one answer or several to each; every answer is a choice with its own
stream of tokens. Choices run side by side; one that fails ends the request, and with it the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from penstock.asgi.exchange import Exchange, unless_gone
from penstock.base.errors import PenstockError
from penstock.engine.sampling import Constraint, SamplingParams
from penstock.engine.service import Options, TokenStream
from penstock.protocol import sse
from penstock.protocol.envelope import encode_error
from penstock.protocol.stream import Event, StreamOrder
from penstock.protocol.usage import Usage
from penstock.replica.generation import Generation
from penstock.replica.model import ServedModel
from penstock.replica.shapes import Collected, Shape
from penstock.text.fragments import OutputParser


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, with the options that it is submitted with."""

    tokens: Sequence[int]
    samplings: Sequence[SamplingParams]
    """One for each answer."""
    options: Options
    new_constraint: Callable[[], Constraint] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request, read and checked."""

    prompts: Sequence[Prompt]
    num_choices: int
    """Answers to each prompt."""
    stops: Sequence[str]
    shape: Shape
    streams: bool
    include_usage: bool
    log_fields: Mapping[str, str]
    new_parser: Callable[[], OutputParser] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer on its way."""

    index: int
    stream: TokenStream
    generation: Generation


async def answer(exchange: Exchange, model: ServedModel, job: Job, on_token: Callable[[int], None]) -> None:
    """Runs the job and answers the exchange; the engine lets go of it at the latest when this returns.

    `on_token` is called with a choice's index at each of its tokens.
    """

    async def generate() -> None:
        async with _choices(model, job) as choices:
            try:
                await (_stream if job.streams else _whole)(exchange, job, choices, on_token)
            finally:
                used = _usage(job, choices)
                exchange.log_fields |= {
                    **job.log_fields,
                    "model": model.name,
                    "prompt_tokens": used.prompt_tokens,
                    "cached_tokens": used.prompt_tokens_details.cached_tokens,
                    "completion_tokens": used.completion_tokens,
                    "finish_reason": ",".join(str(choice.generation.finish_reason) for choice in choices[:8]),
                }

    await unless_gone(exchange, generate())


@asynccontextmanager
async def _choices(model: ServedModel, job: Job) -> AsyncIterator[list[Choice]]:
    """Every answer of the job, running; the engine lets go of them at the end of the block."""
    model.service.refuse_if_full(len(job.prompts) * job.num_choices)
    choices: list[Choice] = []
    async with AsyncExitStack() as stack:
        for prompt in job.prompts:
            for stream in model.service.submit_group(
                prompt.tokens, prompt.samplings, new_constraint=prompt.new_constraint, **prompt.options
            ):
                await stack.enter_async_context(stream)
                parser = None if job.new_parser is None else job.new_parser()
                generation = Generation(stream, model.tokenizer, job.stops, parser)
                choices.append(Choice(len(choices), stream, generation))
        yield choices


def _usage(job: Job, choices: Sequence[Choice]) -> Usage:
    """Each prompt counts once, whatever the number of answers to it."""
    first = choices[:: job.num_choices]
    return Usage.of(
        sum(len(prompt.tokens) for prompt in job.prompts),
        sum(choice.generation.num_tokens for choice in choices),
        sum(choice.stream.num_cached_tokens for choice in first),
    )


async def _for_each(
    choices: Sequence[Choice], work: Callable[[Choice], Coroutine[object, object, None]]
) -> None:
    """Runs `work` for all choices side by side; the first failure cancels the others and is raised alone."""
    if len(choices) == 1:
        await work(choices[0])
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            for choice in choices:
                tasks.create_task(work(choice))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _whole(
    exchange: Exchange, job: Job, choices: Sequence[Choice], on_token: Callable[[int], None]
) -> None:
    answers = [Collected(choice.index) for choice in choices]

    async def collect(choice: Choice) -> None:
        collected = answers[choice.index]
        async for piece in choice.generation.pieces():
            on_token(choice.index)
            collected.add(piece)
        assert choice.generation.finish_reason is not None
        collected.finish_reason = choice.generation.finish_reason

    await _for_each(choices, collect)
    await exchange.respond(200, job.shape.whole(answers, _usage(job, choices)))


async def _stream(
    exchange: Exchange, job: Job, choices: Sequence[Choice], on_token: Callable[[int], None]
) -> None:
    """The head waits for the first token, so that what fails before it has a status of its own."""
    writer = _EventWriter(exchange, len(choices))

    async def relay(choice: Choice) -> None:
        is_open = False
        async for piece in choice.generation.pieces():
            on_token(choice.index)
            if not is_open:
                is_open = True
                await writer.open()
                for event, data in job.shape.opening(choice.index):
                    await writer.write(event, data, choice.index)
            for data in job.shape.piece(choice.index, piece):
                await writer.write(Event.CONTENT, data, choice.index)
        assert choice.generation.finish_reason is not None
        last = job.shape.finish(choice.index, choice.generation.finish_reason)
        await writer.write(Event.FINISH, last, choice.index)

    try:
        await _for_each(choices, relay)
        if job.include_usage:
            await writer.write(Event.USAGE, job.shape.usage(_usage(job, choices)))
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

    def __init__(self, exchange: Exchange, num_choices: int) -> None:
        self._exchange = exchange
        self._order = StreamOrder(num_choices)

    async def open(self) -> None:
        """Sends the head, unless another choice has."""
        if not self._exchange.has_started:
            await self._exchange.start(
                200, [(b"content-type", sse.CONTENT_TYPE), (b"cache-control", b"no-cache")]
            )

    async def write(self, event: Event, data: bytes, choice: int = 0) -> None:
        self._order.advance(event, choice)
        await self._exchange.write(sse.encode_event(data))

    async def close(self) -> None:
        self._order.advance(Event.DONE)
        await self._exchange.finish(sse.DONE)

    async def fail(self, error: Exception) -> None:
        self._order.advance(Event.ERROR)
        await self._exchange.finish(sse.encode_event(encode_error(error)))
