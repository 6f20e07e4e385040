"""The HTTP face of an encoder: embeddings or scores, tokens, probes and metrics of one replica."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.asgi.application import Application, Endpoint
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange
from penstock.asgi.model_endpoints import ModelEndpoints
from penstock.asgi.probes import Probes
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import InvalidRequestError, NotReadyError
from penstock.observe import engine_names as names
from penstock.observe import metrics as observe
from penstock.replica.embedding_endpoints import EMBEDDINGS, EmbeddingEndpoints
from penstock.replica.encoder_model import ServedEncoder
from penstock.replica.ranking import CosineRanker, CrossRanker
from penstock.replica.rerank_endpoints import RerankEndpoints
from penstock.replica.token_endpoints import TokenEndpoints

GENERATING_PATHS = ("/v1/chat/completions", "/v1/completions")


class EncoderReplica:
    """Endpoints over one served encoder."""

    def __init__(self, model: ServedEncoder, limits: HttpLimits, drain: Drain) -> None:
        self._model = model
        self._limits = limits
        self._drain = drain
        self._probes = Probes("engine", drain, self._read_engine)

    def application(self) -> Application:
        """The ASGI application."""
        return Application(
            {
                **self._own_endpoints(),
                **{("POST", path): Endpoint(self._refuse_generation) for path in GENERATING_PATHS},
                **TokenEndpoints(self._model, None, self._limits).table(),
                **ModelEndpoints(self._model.models).table(),
                ("GET", "/health"): Endpoint(self._ready, is_work=False),
                **self._probes.table(),
                ("GET", "/readyz"): Endpoint(self._ready, is_work=False),
            },
            self._drain,
            self._probes.count,
        )

    def _own_endpoints(self) -> dict[tuple[str, str], Endpoint]:
        model, service, limits = self._model, self._model.service, self._limits
        if model.embedding is None:
            return {
                ("POST", EMBEDDINGS): Endpoint(self._refuse_embedding),
                **RerankEndpoints(model, CrossRanker(model, service), limits).table(),
            }
        ranker = CosineRanker(model, service, model.embedding)
        return {
            **EmbeddingEndpoints(model, service, model.embedding, limits).table(),
            **RerankEndpoints(model, ranker, limits).table(),
        }

    async def _refuse_generation(self, exchange: Exchange) -> None:
        raise InvalidRequestError(
            f"the model {self._model.name!r} is an encoder and does not generate; it serves "
            f"{'/v1/rerank' if self._model.embedding is None else '/v1/embeddings and /v1/rerank'}",
            param="model",
        )

    async def _refuse_embedding(self, exchange: Exchange) -> None:
        raise InvalidRequestError(
            f"the model {self._model.name!r} scores pairs of texts and has no embeddings; use /v1/rerank",
            param="model",
        )

    async def _ready(self, exchange: Exchange) -> None:
        refusal = self._model.service.refusal or ("draining" if self._drain.is_draining else None)
        if refusal is not None:
            raise NotReadyError(refusal)
        await exchange.respond(200, b'{"status":"ready"}')

    def _read_engine(self) -> Iterator[observe.Reading]:
        stats = self._model.service.stats()
        yield names.RUNNING, (self._model.name, "0"), self._model.service.num_requests
        yield names.FAILED_STEPS, (), stats.num_failed_steps
        yield names.STUCK_STEPS, (), self._model.service.is_stuck
        yield names.STEP_SECONDS, (), stats.step_seconds
        yield names.COMPUTED_PROMPT_TOKENS, (), stats.prompt_tokens
