"""The HTTP face of the engine: OpenAI's API, probes and metrics of one replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from penstock.asgi.application import Application, Endpoint
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange
from penstock.asgi.model_endpoints import ModelEndpoints
from penstock.asgi.probes import Probes
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import InvalidRequestError, NotReadyError
from penstock.observe import metrics as observe
from penstock.observe import names
from penstock.protocol.chat import ChatRequest, Role, read_chat_request
from penstock.protocol.completions import read_completion_request
from penstock.protocol.generation import GenerationRequest
from penstock.replica.adapters import AdapterEndpoints
from penstock.replica.answer import Job, answer
from penstock.replica.model import ServedModel
from penstock.replica.request_timeout import read_request_timeout
from penstock.replica.shapes import ChatShape, CompletionShape, Shape
from penstock.text.template import Turn

# The template's word for each role: templates know no developer, which is OpenAI's newer word for system.
_TEMPLATE_ROLES: dict[Role, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class Replica:
    """Endpoints over one served model."""

    def __init__(self, model: ServedModel, limits: HttpLimits, drain: Drain) -> None:
        self._model = model
        self._limits = limits
        self._drain = drain
        self._probes = Probes("engine", drain, self._read_engine)
        self._first_token = self._probes.metrics.histogram(names.ENGINE_TTFT)

    def application(self) -> Application:
        """The ASGI application."""
        return Application(
            {
                ("POST", "/v1/chat/completions"): Endpoint(self._chat),
                ("POST", "/v1/completions"): Endpoint(self._complete),
                **ModelEndpoints(self._model.models).table(),
                **AdapterEndpoints(self._model.adapters, self._limits).table(),
                ("GET", "/health"): Endpoint(self._ready, is_work=False),
                **self._probes.table(),
                ("GET", "/readyz"): Endpoint(self._ready, is_work=False),
            },
            self._drain,
            self._probes.count,
        )

    async def _chat(self, exchange: Exchange) -> None:
        started = self._model.service.now()
        deadline = started + read_request_timeout(exchange.headers)
        request = read_chat_request(await self._body(exchange))
        self._model.check_name(request.model)
        self._model.service.refuse_if_full()
        # Off the event loop: rendering and tokenising a long conversation takes milliseconds.
        prompt = await asyncio.to_thread(self._encode_chat, request)
        shape = ChatShape(self._model.name, include_usage=request.includes_usage)
        await self._answer(exchange, self._job(request, prompt, shape, deadline), started)

    async def _complete(self, exchange: Exchange) -> None:
        started = self._model.service.now()
        deadline = started + read_request_timeout(exchange.headers)
        request = read_completion_request(await self._body(exchange))
        self._model.check_name(request.model)
        self._model.service.refuse_if_full()
        prompt = await asyncio.to_thread(self._encode_text, request.text)
        shape = CompletionShape(self._model.name, include_usage=request.includes_usage)
        await self._answer(exchange, self._job(request, prompt, shape, deadline), started)

    def _job(self, request: GenerationRequest, prompt: list[int], shape: Shape, deadline: float) -> Job:
        return Job(
            prompt=prompt,
            sampling=self._model.sampling(request, len(prompt)),
            stops=request.stop_strings,
            shape=shape,
            streams=bool(request.stream),
            include_usage=request.includes_usage,
            user=request.user,
            cache_salt=request.cache_salt or "",
            deadline=deadline,
        )

    async def _answer(self, exchange: Exchange, job: Job, started: float) -> None:
        def on_first_token() -> None:
            self._first_token.observe(self._model.service.now() - started)

        await answer(exchange, self._model, job, on_first_token)

    def _encode_chat(self, request: ChatRequest) -> list[int]:
        if self._model.template is None:
            raise InvalidRequestError(
                f"the model {self._model.name!r} has no chat template; use /v1/completions", param="messages"
            )
        self._model.refuse_long_text(sum(len(message.text) for message in request.messages), "messages")
        return self._model.template.encode(
            [Turn(_TEMPLATE_ROLES[message.role], message.text) for message in request.messages]
        )

    def _encode_text(self, text: str) -> list[int]:
        self._model.refuse_long_text(len(text), "prompt")
        ids = self._model.tokenizer.encode(text, add_special_tokens=True)
        if not ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        return ids

    async def _body(self, exchange: Exchange) -> bytes:
        return await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)

    async def _ready(self, exchange: Exchange) -> None:
        refusal = self._model.service.refusal or ("draining" if self._drain.is_draining else None)
        if refusal is not None:
            raise NotReadyError(refusal)
        await exchange.respond(200, b'{"status":"ready"}')

    def _read_engine(self) -> Iterator[observe.Reading]:
        stats = self._model.service.stats()
        yield names.ENGINE_RUNNING, (), stats.num_running
        yield names.ENGINE_WAITING, (), stats.num_waiting
        yield names.ENGINE_KV_BLOCKS, ("free",), stats.num_free_blocks
        yield names.ENGINE_KV_BLOCKS, ("cached",), stats.num_cached_blocks
        yield names.ENGINE_KV_BLOCKS, ("held",), stats.num_held_blocks
        yield names.ENGINE_LORAS, ("loaded",), len(self._model.adapters.loaded)
        yield names.ENGINE_LORAS, ("leaving",), self._model.adapters.num_leaving
        yield names.ENGINE_STEPS, (), stats.num_steps
        yield names.ENGINE_FAILED_STEPS, (), stats.num_failed_steps
        yield names.ENGINE_STUCK_STEPS, (), self._model.service.is_stuck
        yield names.ENGINE_STEP_SECONDS, (), stats.step_seconds
        yield names.ENGINE_PREEMPTIONS, (), stats.num_preemptions
        yield names.ENGINE_PREFIX_QUERIED_TOKENS, (), stats.prefix_queried_tokens
        yield names.ENGINE_PREFIX_HIT_TOKENS, (), stats.prefix_hit_tokens
        yield names.ENGINE_EVICTIONS, (), stats.num_evictions
        yield names.ENGINE_PROMPT_TOKENS, (), stats.prompt_tokens
        yield names.ENGINE_GENERATED_TOKENS, (), stats.generated_tokens
