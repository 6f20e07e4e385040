"""Answers one generation request, streamed or whole, in the legal order of `protocol.stream`.

A request has one prompt or several and one answer or several to each; every answer is a choice with its own
stream of tokens. Choices run side by side; one that fails ends the request, and with it the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from penstock.asgi.exchange import Exchange, unless_gone
from penstock.base.errors import ClientError, MovedError, PenstockError
from penstock.engine.sampling import Constraint, SamplingParams, TokenLogprobs
from penstock.engine.service import Options, TokenStream
from penstock.protocol import sse
from penstock.protocol.envelope import encode_error
from penstock.protocol.stream import Event, StreamOrder
from penstock.protocol.usage import Usage
from penstock.replica.generation import Generation, Piece
from penstock.replica.meter import AnswerEnd, RequestMeter
from penstock.replica.model import ServedModel
from penstock.replica.shapes import Asked, Collected, Shape
from penstock.text.detokenizer import Decodes
from penstock.text.fragments import OutputParser

DialectName = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, with the options that it is submitted with."""

    tokens: Sequence[int]
    samplings: Sequence[SamplingParams]
    """One for each answer."""
    options: Options
    new_constraint: Callable[[], Constraint] | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """What another engine has done of one answer."""

    tokens: Sequence[int]
    """Those that are text."""
    logprobs: Sequence[tuple[int, TokenLogprobs]] = ()
    num_tokens: int | None = None
    """Tokens that count; None: those above."""
    finish_reason: str | None = None
    """Set if it is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request, read and checked."""

    endpoint: DialectName
    asked: Asked
    prompts: Sequence[Prompt]
    num_choices: int
    """Answers to each prompt."""
    stops: Sequence[str]
    shape: Shape
    streams: bool
    include_usage: bool
    log_fields: Mapping[str, str]
    resumed: Sequence[Resumed] = ()
    """What another engine has done of it, one for each choice; empty: nothing."""
    decodes: Decodes
    """Shows the special tokens that the parser looks for."""
    new_parser: Callable[[], OutputParser] | None = None
    """Takes answers apart; None if all text is content."""


@dataclass(slots=True)
class Choice:
    """One answer on its way."""

    index: int
    generation: Generation
    stream: TokenStream | None = None
    """None before it is submitted, and if it was complete before."""
    collected: Collected = field(init=False)
    """What came of it, where it is not streamed."""

    def __post_init__(self) -> None:
        self.collected = Collected(self.index)

    @property
    def is_open(self) -> bool:
        """True if more is to come."""
        return self.generation.finish_reason is None

    def pieces(self) -> AsyncIterator[Piece]:
        """The answer as it becomes certain."""
        assert self.stream is not None
        return self.generation.pieces(self.stream)


async def answer(
    exchange: Exchange,
    model: ServedModel,
    job: Job,
    meter: RequestMeter,
    on_begin: Callable[[Sequence[Choice]], None] = lambda choices: None,
) -> None:
    """Runs the job and answers the exchange; the engine lets go of it at the latest when this returns.

    `on_begin` is called with its choices when they are submitted.
    """

    async def generate() -> None:
        async with _choices(model, job) as choices:
            on_begin(choices)
            failure = "abort"
            try:
                await (_stream if job.streams else _whole)(exchange, job, choices, meter)
            except Exception as error:
                failure = "abort" if isinstance(error, ClientError) else "error"
                raise
            finally:
                meter.end(_ends(choices, failure))
                used = _usage(job, choices)
                exchange.log_fields |= {
                    **job.log_fields,
                    "model": job.asked.model,
                    "prompt_tokens": used.prompt_tokens,
                    "cached_tokens": used.prompt_tokens_details.cached_tokens,
                    "completion_tokens": used.completion_tokens,
                    "finish_reason": ",".join(str(choice.generation.finish_reason) for choice in choices[:8]),
                }

    await unless_gone(exchange, generate())


@asynccontextmanager
async def _choices(model: ServedModel, job: Job) -> AsyncIterator[list[Choice]]:
    """Every answer of the job, running; the engine lets go of them at the end of the block."""
    choices = [_begin(model, job, index) for index in range(len(job.prompts) * job.num_choices)]
    model.service.refuse_if_full(sum(choice.is_open for choice in choices))
    async with AsyncExitStack() as stack:
        for index, prompt in enumerate(job.prompts):
            first = index * job.num_choices
            for choice in _submit(model, prompt, choices[first : first + job.num_choices]):
                assert choice.stream is not None
                await stack.enter_async_context(choice.stream)
        yield choices


def _begin(model: ServedModel, job: Job, index: int) -> Choice:
    """A choice that has taken in what another engine has done of it."""
    parser = None if job.new_parser is None else job.new_parser()
    choice = Choice(index, Generation(job.decodes, job.stops, parser))
    if job.resumed:
        before = job.resumed[index]
        choice.collected.add(Piece(choice.generation.resume(before.tokens)))
        choice.collected.logprobs += before.logprobs
        if before.num_tokens is not None:
            choice.generation.num_tokens = before.num_tokens
        if before.finish_reason is not None:
            choice.generation.finish_reason = before.finish_reason
        choice.collected.finish_reason = choice.generation.finish_reason
    return choice


def _submit(model: ServedModel, prompt: Prompt, choices: Sequence[Choice]) -> Iterator[Choice]:
    """Submits a prompt for those of its choices that are not complete, and gives these."""
    if not any(choice.generation.tokens or not choice.is_open for choice in choices):
        streams = model.service.submit_group(
            prompt.tokens, prompt.samplings, new_constraint=prompt.new_constraint, **prompt.options
        )
        for choice, stream in zip(choices, streams, strict=True):
            choice.stream = stream
            yield choice
        return
    for choice, sampling in zip(choices, prompt.samplings, strict=True):
        if choice.is_open:
            before = choice.generation.tokens
            options = prompt.options.copy()
            options["num_resumed"] = len(before)
            (choice.stream,) = model.service.submit_group(
                [*prompt.tokens, *before], [sampling], new_constraint=prompt.new_constraint, **options
            )
            yield choice


def _ends(choices: Sequence[Choice], failure: str) -> dict[int, AnswerEnd]:
    """How each answer ended; `failure` for those that did not end by themselves."""
    reasons = {"tool_calls": "stop", None: failure}
    return {
        choice.index: AnswerEnd(
            reasons.get(choice.generation.finish_reason, choice.generation.finish_reason or failure),
            choice.stream.sequence,
        )
        for choice in choices
        if choice.stream is not None
    }


def _usage(job: Job, choices: Sequence[Choice]) -> Usage:
    """Each prompt counts once, whatever the number of answers to it."""
    first = choices[:: job.num_choices]
    return Usage.of(
        sum(len(prompt.tokens) for prompt in job.prompts),
        sum(choice.generation.num_tokens for choice in choices),
        sum(choice.stream.num_cached_tokens for choice in first if choice.stream is not None),
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


async def _whole(exchange: Exchange, job: Job, choices: Sequence[Choice], meter: RequestMeter) -> None:
    async def collect(choice: Choice) -> None:
        async for piece in choice.pieces():
            meter.token(choice.index)
            choice.collected.add(piece)
        choice.collected.finish_reason = choice.generation.finish_reason

    await _for_each([choice for choice in choices if choice.is_open], collect)
    _refuse_moved(choices)
    answers = [choice.collected for choice in choices]
    await exchange.respond(200, job.shape.whole(answers, _usage(job, choices)))


async def _stream(exchange: Exchange, job: Job, choices: Sequence[Choice], meter: RequestMeter) -> None:
    """The head waits for the first token, so that what fails before it has a status of its own."""
    writer = _EventWriter(exchange, [choice.is_open for choice in choices])

    async def relay(choice: Choice) -> None:
        # The engine that had a request before has opened the answers of which it had a token.
        opening = () if choice.generation.tokens else job.shape.opening(choice.index)
        is_open = False
        async for piece in choice.pieces():
            meter.token(choice.index)
            if not is_open:
                is_open = True
                await writer.open()
                for event, data in opening:
                    await writer.write(event, data, choice.index)
            for data in job.shape.piece(choice.index, piece):
                await writer.write(Event.CONTENT, data, choice.index)
        if (reason := choice.generation.finish_reason) is not None:
            await writer.write(Event.FINISH, job.shape.finish(choice.index, reason), choice.index)

    try:
        await _for_each([choice for choice in choices if choice.is_open], relay)
        _refuse_moved(choices)
        await writer.open()
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


def _refuse_moved(choices: Sequence[Choice]) -> None:
    if any(choice.is_open for choice in choices):
        raise MovedError("the request goes on in another engine")


class _EventWriter:
    """Writes events and holds itself to the legal order."""

    def __init__(self, exchange: Exchange, are_open: Sequence[bool]) -> None:
        """`are_open`: by choice, whether its events are still to come."""
        self._exchange = exchange
        self._order = StreamOrder(are_open)

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
