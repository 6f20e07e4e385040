"""The HTTP face of the engine: OpenAI's API, probes and metrics of one replica."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.asgi.application import Application, Endpoint
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange
from penstock.asgi.model_endpoints import ModelEndpoints
from penstock.asgi.probes import Probes
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import NotReadyError
from penstock.observe import engine_names as names
from penstock.observe import metrics as observe
from penstock.protocol.chat import ChatRequest
from penstock.replica import conversation
from penstock.replica.adapters import AdapterEndpoints
from penstock.replica.decoder_endpoints import decoder_endpoints
from penstock.replica.engine_readings import engine_readings, memory_readings
from penstock.replica.generation_endpoints import GenerationEndpoints
from penstock.replica.kv_endpoints import KVEndpoints
from penstock.replica.kv_event_endpoints import KVEventEndpoints
from penstock.replica.meter import RequestMeters
from penstock.replica.model import ServedModel


class Replica:
    """Endpoints over one served model."""

    def __init__(self, model: ServedModel, limits: HttpLimits, drain: Drain) -> None:
        self._model = model
        self._limits = limits
        self._drain = drain
        self._probes = Probes("engine", drain, self._read_engine)
        self._meters = RequestMeters(model.name, model.max_model_len, model.service.now)
        self._events = None if model.kv_events is None else KVEventEndpoints(model.service, model.kv_events)
        self._kv = None if model.kv is None else KVEndpoints(model, model.kv, limits)

    def application(self) -> Application:
        """The ASGI application."""
        return Application(
            {
                **GenerationEndpoints(self._model, self._limits, self._meters).table(),
                **decoder_endpoints(self._model, self._limits, self._encode_chat),
                **ModelEndpoints(self._model.models).table(),
                **AdapterEndpoints(self._model.adapters, self._limits).table(),
                **({} if self._kv is None else self._kv.table()),
                **({} if self._events is None else self._events.table()),
                ("GET", "/health"): Endpoint(self._ready, is_work=False),
                **self._probes.table(),
                ("GET", "/readyz"): Endpoint(self._ready, is_work=False),
            },
            self._drain,
            self._probes.count,
        )

    def _encode_chat(self, request: ChatRequest, add_generation_prompt: bool) -> list[int]:
        return conversation.encode(self._model, request, add_generation_prompt=add_generation_prompt)

    async def _ready(self, exchange: Exchange) -> None:
        refusal = self._model.service.refusal or ("draining" if self._drain.is_draining else None)
        if refusal is not None:
            raise NotReadyError(refusal)
        await exchange.respond(200, b'{"status":"ready"}')

    def _read_engine(self) -> Iterator[observe.Reading]:
        yield from self._meters.readings()
        yield from engine_readings(self._model.service, self._meters.labels)
        yield from memory_readings(
            self._model.memory, self._meters.labels, prefix_cache=self._model.service.core.is_caching
        )
        if self._kv is not None:
            yield from self._kv.readings()
        yield names.LORAS, ("loaded",), len(self._model.adapters.loaded)
        yield names.LORAS, ("leaving",), self._model.adapters.num_leaving
