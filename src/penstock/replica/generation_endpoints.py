"""/v1/chat/completions and /v1/completions: from a request's bytes to a job, and its answer."""

from __future__ import annotations

import asyncio

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import InvalidRequestError
from penstock.engine.prompt_logprobs import PromptLogprobs
from penstock.engine.sequence import Priority
from penstock.engine.service import Options
from penstock.protocol.chat import ChatRequest, Role, read_chat_request
from penstock.protocol.completions import CompletionRequest, read_completion_request
from penstock.protocol.generation import GenerationRequest
from penstock.replica.answer import Job, Prompt, answer
from penstock.replica.echo import Echo
from penstock.replica.meter import RequestMeters
from penstock.replica.model import ServedModel
from penstock.replica.request_timeout import read_request_timeout
from penstock.replica.shapes import Asked, ChatShape, CompletionShape, Shape
from penstock.text.template import Turn

# The template's word for each role: templates know no developer, which is OpenAI's newer word for system.
_TEMPLATE_ROLES: dict[Role, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class GenerationEndpoints:
    """Answers what generates text with one served model."""

    def __init__(self, model: ServedModel, limits: HttpLimits, meters: RequestMeters) -> None:
        self._model = model
        self._limits = limits
        self._meters = meters

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {
            ("POST", "/v1/chat/completions"): Endpoint(self._chat),
            ("POST", "/v1/completions"): Endpoint(self._complete),
        }

    async def _chat(self, exchange: Exchange) -> None:
        arrival, options = self._arrive(exchange)
        request = read_chat_request(await self._body(exchange))
        self._admit(request, 1)
        # Off the event loop: rendering and tokenising a long conversation takes milliseconds.
        tokens = await asyncio.to_thread(self._encode_chat, request)
        shape = ChatShape(self._asked(request, request.num_logprobs))
        prompt = self._prompt(request, tokens, options, request.num_logprobs)
        await self._answer(exchange, self._job(request, [prompt], shape), arrival)

    async def _complete(self, exchange: Exchange) -> None:
        arrival, options = self._arrive(exchange)
        request = read_completion_request(await self._body(exchange))
        self._admit(request, len(request.prompts))
        encoded = await asyncio.to_thread(lambda: [self._encode(prompt) for prompt in request.prompts])
        echoes = [
            self._echo(request, prompt, tokens)
            for prompt, tokens in zip(request.prompts, encoded, strict=True)
        ]
        prompts = [
            self._prompt(request, tokens, _with_readout(options, echo), request.num_logprobs)
            for tokens, echo in zip(encoded, echoes, strict=True)
        ]
        shape = CompletionShape(self._asked(request, request.num_logprobs), echoes, request.num_choices)
        await self._answer(exchange, self._job(request, prompts, shape), arrival)

    def _arrive(self, exchange: Exchange) -> tuple[float, Options]:
        """When the request arrived, and its deadline."""
        now = self._model.service.now()
        return now, {"deadline": now + read_request_timeout(exchange.headers)}

    def _admit(self, request: GenerationRequest, num_prompts: int) -> None:
        """Refuses what is refused whatever its prompt is, before time is spent on that."""
        self._model.check_name(request.model)
        self._model.service.refuse_if_full(num_prompts * request.num_choices)

    def _asked(self, request: GenerationRequest, logprobs: int | None) -> Asked:
        return Asked(
            model=request.model,
            tokenizer=self._model.tokenizer,
            include_usage=request.includes_usage,
            logprobs=logprobs,
            service_tier=request.service_tier,
        )

    def _prompt(
        self, request: GenerationRequest, tokens: list[int], options: Options, logprobs: int | None
    ) -> Prompt:
        urgency = request.urgency
        priority = Priority.HIGH if urgency < 0 else Priority.LOW if urgency else Priority.NORMAL
        more: Options = {"priority": priority, "cache_salt": request.cache_salt or ""}
        return Prompt(tokens, self._model.samplings(request, len(tokens), logprobs), {**options, **more})

    def _job(self, request: GenerationRequest, prompts: list[Prompt], shape: Shape) -> Job:
        return Job(
            prompts=prompts,
            num_choices=request.num_choices,
            stops=request.stop_strings,
            shape=shape,
            streams=bool(request.stream),
            include_usage=request.includes_usage,
            log_fields=request.log_fields,
        )

    async def _answer(self, exchange: Exchange, job: Job, arrival: float) -> None:
        await answer(exchange, self._model, job, self._meters.begin(arrival))

    def _encode_chat(self, request: ChatRequest) -> list[int]:
        if self._model.template is None:
            raise InvalidRequestError(
                f"the model {self._model.name!r} has no chat template; use /v1/completions", param="messages"
            )
        self._model.refuse_long_text(sum(len(message.text) for message in request.messages), "messages")
        return self._model.template.encode(
            [Turn(_TEMPLATE_ROLES[message.role], message.text) for message in request.messages]
        )

    def _encode(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            self._model.refuse_long_text(len(prompt), "prompt")
            tokens = self._model.tokenizer.encode(prompt, add_special_tokens=True)
        else:
            tokens = prompt
            self._model.check_tokens(tokens, "prompt")
        if not tokens:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        return tokens

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
