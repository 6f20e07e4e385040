"""Moves a running request to another engine, token by token exact.

Everything that an answer goes on from is a function of the request and of the tokens so far: draws (seed
and position), penalties, the grammar's state, what the parsers hold back. So the state that is moved is just
that. What had been generated is delivered by the engine that gave the request away, as far as it was certain;
the other one delivers what follows. Keys and values are computed anew there, or moved before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from penstock.base.errors import InvalidRequestError, RequestNotFoundError
from penstock.engine.sampling import TokenLogprobs
from penstock.engine.service import EngineService
from penstock.protocol.generation import MAX_NAME_LENGTH
from penstock.protocol.strict import NOT_JSON, explain, read_request
from penstock.replica.answer import Choice, DialectName, Job, Resumed
from penstock.replica.logprobs import LEAST

_Tokens = list[Annotated[int, Meta(ge=0, lt=1 << 31)]]
_Top = tuple[tuple[int, float], ...]


class AnswerState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer so far."""

    tokens: _Tokens
    logprobs: list[tuple[int, float, _Top]] = []
    """Token, its log-probability, alternatives: of an answer that is not streamed, where asked for."""
    num_tokens: int | None = None
    """Tokens that count, an end token included; null: those above."""
    finish_reason: str | None = None

    def resumed(self) -> Resumed:
        """As the answering side takes it."""
        logprobs = [(token, TokenLogprobs(own, top)) for token, own, top in self.logprobs]
        return Resumed(self.tokens, logprobs, self.num_tokens, self.finish_reason)


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request on its way from one engine to another."""

    version: Literal[1] = 1
    endpoint: DialectName
    request: msgspec.Raw
    """The body as the client sent it."""
    prompts: list[_Tokens]
    seed: int
    max_tokens: list[int]
    """By prompt: the most that an answer may have."""
    id: str
    created: int
    """Of the answer."""
    remaining_s: float | None = None
    """What is left of the request's own time limit."""
    answers: list[AnswerState]


_decode = msgspec.json.Decoder(State).decode


def read_state(body: bytes) -> State:
    """Reads what :meth:`LiveRequests.export` has written.

    Raises:
        InvalidRequestError: it is not such a state; `param` names the field.
    """
    try:
        state = _decode(body)
    except msgspec.ValidationError as error:
        raise explain(error) from error
    except NOT_JSON as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
    if not state.prompts or len(state.max_tokens) != len(state.prompts):
        raise InvalidRequestError("'max_tokens' needs a number for every prompt", param="max_tokens")
    return state


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which request to hand over."""

    request_id: Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
    """Its `x-request-id`."""


_EXPORT = msgspec.json.Decoder(ExportRequest)


def read_export_request(body: bytes) -> ExportRequest:
    """Raises InvalidRequestError or UnknownParameterError; `param` names the field."""
    return read_request(body, _EXPORT, {})


@dataclass(slots=True)
class Live:
    """A request that runs here."""

    job: Job
    body: bytes
    choices: Sequence[Choice] = ()
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, choices: Sequence[Choice]) -> None:
        """Its choices are submitted."""
        self.choices = choices


class LiveRequests:
    """The requests that run here, by their ids; bounded as the engine's are."""

    def __init__(self, service: EngineService) -> None:
        self._service = service
        self._live: dict[str, Live] = {}

    @contextmanager
    def hold(self, request_id: str, job: Job, body: bytes) -> Iterator[Live]:
        """Lets the request be moved while the block runs. Of two with one id, the later one is found."""
        live = self._live[request_id] = Live(job, body)
        try:
            yield live
        finally:
            live.ended.set()
            if self._live.get(request_id) is live:
                del self._live[request_id]

    async def export(self, request_id: str) -> bytes:
        """Ends a request here; its state, to be resumed elsewhere. Its client here sees a `moved` error.

        Raises:
            RequestNotFoundError: there is no such request, or it has just ended.
        """
        live = self._live.get(request_id)
        if live is None or not live.choices:
            raise RequestNotFoundError(f"no request {request_id!r} runs here", param="request_id")
        moved: Mapping[int, list[int]] = {}
        for choice in live.choices:
            if (
                choice.stream is not None
                and (sequence := await self._service.move(choice.stream)) is not None
            ):
                moved = {**moved, choice.index: sequence.answer}
        if not moved:
            raise RequestNotFoundError(f"the request {request_id!r} has just ended", param="request_id")
        if not live.job.streams:
            await live.ended.wait()  # its answers are put together here, which waits for nobody
            if not any(choice.is_open for choice in live.choices):
                raise RequestNotFoundError(f"the request {request_id!r} has just ended", param="request_id")
        return msgspec.json.encode(self._state(live, moved))

    def _state(self, live: Live, moved: Mapping[int, list[int]]) -> State:
        job = live.job
        remaining_s = job.prompts[0].options["deadline"] - self._service.now()
        return State(
            endpoint=job.endpoint,
            request=msgspec.Raw(live.body),
            prompts=[list(prompt.tokens) for prompt in job.prompts],
            seed=job.prompts[0].samplings[0].seed,
            max_tokens=[prompt.samplings[0].max_tokens for prompt in job.prompts],
            id=job.asked.id,
            created=job.asked.created,
            remaining_s=max(remaining_s, 1e-3) if remaining_s < float("inf") else None,
            answers=[_answer(choice, moved.get(choice.index)) for choice in live.choices],
        )


def _answer(choice: Choice, moved: list[int] | None) -> AnswerState:
    if moved is None:
        # It has ended in the engine; what is not said of it yet is in its stream, and will be said here.
        return AnswerState(
            tokens=choice.generation.tokens,
            logprobs=_logprobs(choice),
            num_tokens=_num_tokens(choice),
            finish_reason=choice.generation.finish_reason or "stop",
        )
    return AnswerState(tokens=moved, logprobs=_logprobs(choice))


def _num_tokens(choice: Choice) -> int:
    if choice.generation.finish_reason is None and choice.stream is not None:
        return choice.stream.sequence.num_generated
    return choice.generation.num_tokens


def _logprobs(choice: Choice) -> list[tuple[int, float, _Top]]:
    """With LEAST for minus infinity, which JSON cannot say; clients see it as LEAST anyway."""
    return [
        (token, max(said.token, LEAST), tuple((other, max(logprob, LEAST)) for other, logprob in said.top))
        for token, said in choice.collected.logprobs
    ]
