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
from penstock.observe import metrics as observe
from penstock.observe import names
from penstock.replica.generation_endpoints import GenerationEndpoints
from penstock.replica.meter import RequestMeters
from penstock.replica.model import ServedModel


class Replica:
    """Endpoints over one served model."""

    def __init__(self, model: ServedModel, limits: HttpLimits, drain: Drain) -> None:
        self._model = model
        self._limits = limits
        self._drain = drain
        self._probes = Probes("engine", drain, self._read_engine)
        self._meters = RequestMeters(self._probes.metrics, model.service.now)

    def application(self) -> Application:
        """The ASGI application."""
        return Application(
            {
                **GenerationEndpoints(self._model, self._limits, self._meters).table(),
                **ModelEndpoints([self._model.name], self._model.created).table(),
                ("GET", "/health"): Endpoint(self._ready, is_work=False),
                **self._probes.table(),
                ("GET", "/readyz"): Endpoint(self._ready, is_work=False),
            },
            self._drain,
            self._probes.count,
        )

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
