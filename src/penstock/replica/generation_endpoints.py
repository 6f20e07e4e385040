"""What generates text, chat and text completions: from a request's bytes to a job, and its answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import InvalidRequestError
from penstock.base.ids import new_id
from penstock.engine.prompt_logprobs import PromptLogprobs
from penstock.engine.sequence import Priority
from penstock.engine.service import Options
from penstock.protocol.chat import ChatRequest, read_chat_request
from penstock.protocol.completions import CompletionRequest, read_completion_request
from penstock.protocol.generation import GenerationRequest
from penstock.replica import conversation
from penstock.replica.answer import DialectName, Job, Prompt, answer
from penstock.replica.echo import Echo
from penstock.replica.handoff import LiveRequests, State, read_export_request, read_state
from penstock.replica.meter import RequestMeters
from penstock.replica.model import ServedModel
from penstock.replica.request_timeout import read_request_timeout
from penstock.replica.shapes import Asked, ChatShape, CompletionShape, Shape


class GenerationEndpoints:
    """Answers what generates text with one served model."""

    def __init__(self, model: ServedModel, limits: HttpLimits, meters: RequestMeters) -> None:
        self._model = model
        self._limits = limits
        self._meters = meters
        self._live = LiveRequests(model.service)

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {
            ("POST", "/v1/chat/completions"): Endpoint(self._chat),
            ("POST", "/v1/completions"): Endpoint(self._complete),
            ("POST", "/v1/handoff/export"): Endpoint(self._export, is_work=False),
            ("POST", "/v1/handoff/resume"): Endpoint(self._resume),
        }

    async def _chat(self, exchange: Exchange) -> None:
        arrival, options = self._arrive(exchange)
        body = await self._body(exchange)
        request = read_chat_request(body)
        self._admit(request, 1)
        # Off the event loop: rendering and tokenising a long conversation takes milliseconds.
        tokens = await asyncio.to_thread(conversation.encode, self._model, request)
        job = await self._chat_job(request, tokens, options)
        await self._answer(exchange, job, arrival, body)

    async def _complete(self, exchange: Exchange) -> None:
        arrival, options = self._arrive(exchange)
        body = await self._body(exchange)
        request = read_completion_request(body)
        self._admit(request, len(request.prompts))
        encoded = await asyncio.to_thread(
            lambda: [conversation.encode_prompt(self._model, prompt) for prompt in request.prompts]
        )
        job = await self._completion_job(request, encoded, options)
        await self._answer(exchange, job, arrival, body)

    async def _export(self, exchange: Exchange) -> None:
        """Ends a running request here; the answer is its state."""
        asked = read_export_request(await self._body(exchange))
        await exchange.respond(200, await self._live.export(asked.request_id))

    async def _resume(self, exchange: Exchange) -> None:
        """Goes on with a request of another engine; the answer is what its client has not got yet."""
        arrival, _ = self._arrive(exchange)
        state = read_state(await self._body(exchange))
        options: Options = {"deadline": arrival + (state.remaining_s or math.inf)}
        body = bytes(state.request)
        for tokens in (*state.prompts, *(one.tokens for one in state.answers)):
            self._model.check_tokens(tokens, "tokens")
        if state.endpoint == "chat":
            chat = read_chat_request(body)
            self._admit(chat, 1)
            job = await self._chat_job(chat, state.prompts[0], options, state)
        else:
            completion = read_completion_request(body)
            self._admit(completion, len(state.prompts))
            job = await self._completion_job(completion, state.prompts, options, state)
        if len(state.answers) != len(job.prompts) * job.num_choices:
            raise InvalidRequestError(
                "'answers' needs an entry for every answer of the request", param="answers"
            )
        await self._answer(exchange, job, arrival, body)

    def _arrive(self, exchange: Exchange) -> tuple[float, Options]:
        """When the request arrived, and its deadline."""
        now = self._model.service.now()
        return now, {"deadline": now + read_request_timeout(exchange.headers)}

    def _admit(self, request: GenerationRequest, num_prompts: int) -> None:
        """Refuses what is refused whatever its prompt is, before time is spent on that."""
        self._model.find(request.model)
        self._model.service.refuse_if_full(num_prompts * request.num_choices)

    async def _chat_job(
        self, request: ChatRequest, tokens: list[int], options: Options, state: State | None = None
    ) -> Job:
        asked = self._asked(request, request.num_logprobs, "chatcmpl", state)
        reading = await conversation.reading(self._model, request, tokens)
        prompts = self._prompts(request, [(tokens, options)], request.num_logprobs, reading, state)
        return self._job(request, "chat", prompts, ChatShape(asked), asked, reading, state)

    async def _completion_job(
        self,
        request: CompletionRequest,
        encoded: list[list[int]],
        options: Options,
        state: State | None = None,
    ) -> Job:
        if len(encoded) != len(request.prompts):
            raise InvalidRequestError(
                "'prompts' needs an entry for every prompt of the request", param="prompts"
            )
        asked = self._asked(request, request.num_logprobs, "cmpl", state)
        echoes = [
            self._echo(request, prompt, tokens)
            for prompt, tokens in zip(request.prompts, encoded, strict=True)
        ]
        given = [(tokens, _with_readout(options, echo)) for tokens, echo in zip(encoded, echoes, strict=True)]
        new_constraint = await conversation.constraint_of(self._model, request.form)
        reading = conversation.Reading(self._model.tokenizer, new_constraint=new_constraint)
        prompts = self._prompts(request, given, request.num_logprobs, reading, state)
        shape = CompletionShape(asked, echoes, request.num_choices)
        return self._job(request, "completions", prompts, shape, asked, reading, state)

    def _asked(
        self, request: GenerationRequest, logprobs: int | None, prefix: str, state: State | None
    ) -> Asked:
        return Asked(
            model=request.model,
            tokenizer=self._model.tokenizer,
            id=new_id(prefix) if state is None else state.id,
            created=int(time.time()) if state is None else state.created,
            include_usage=request.includes_usage,
            logprobs=logprobs,
            service_tier=request.service_tier,
        )

    def _prompts(
        self,
        request: GenerationRequest,
        given: Sequence[tuple[list[int], Options]],
        logprobs: int | None,
        reading: conversation.Reading,
        state: State | None,
    ) -> list[Prompt]:
        urgency = request.urgency
        priority = Priority.HIGH if urgency < 0 else Priority.LOW if urgency else Priority.NORMAL
        more: Options = {
            "priority": priority,
            "cache_salt": request.cache_salt or "",
            "adapter": self._model.find(request.model),
        }
        prompts = []
        for index, (tokens, options) in enumerate(given):
            samplings = self._model.samplings(request, len(tokens), logprobs)
            if state is not None:
                samplings = self._model.resumed_samplings(
                    samplings, len(tokens), state.seed, state.max_tokens[index]
                )
            prompts.append(Prompt(tokens, samplings, {**options, **more}, reading.new_constraint))
        return prompts

    def _job(
        self,
        request: GenerationRequest,
        endpoint: DialectName,
        prompts: list[Prompt],
        shape: Shape,
        asked: Asked,
        reading: conversation.Reading,
        state: State | None,
    ) -> Job:
        return Job(
            endpoint=endpoint,
            asked=asked,
            prompts=prompts,
            num_choices=request.num_choices,
            stops=request.stop_strings,
            shape=shape,
            streams=bool(request.stream),
            include_usage=request.includes_usage,
            log_fields=request.log_fields,
            decodes=reading.decodes,
            new_parser=reading.new_parser,
            resumed=() if state is None else [one.resumed() for one in state.answers],
        )

    async def _answer(self, exchange: Exchange, job: Job, arrival: float, body: bytes) -> None:
        with self._live.hold(exchange.request_id, job, body) as live:
            await answer(exchange, self._model, job, self._meters.begin(arrival), live.begin)

    def _echo(self, request: CompletionRequest, prompt: str | list[int], tokens: list[int]) -> Echo | None:
        if not request.echo:
            return None
        readout = None if request.logprobs is None else PromptLogprobs(tokens, request.logprobs)
        text = prompt if isinstance(prompt, str) else self._model.tokenizer.text_of(prompt)
        return Echo(text, tokens, readout)

    async def _body(self, exchange: Exchange) -> bytes:
        return await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)


def _with_readout(options: Options, echo: Echo | None) -> Options:
    return options if echo is None or echo.readout is None else {**options, "readout": echo.readout}
