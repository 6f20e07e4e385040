"""/v1/rerank, and the same under the paths that other servers have it at."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import UNSET

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange, unless_gone
from penstock.asgi.settings import HttpLimits
from penstock.base.ids import new_id
from penstock.protocol.embeddings import PromptUsage
from penstock.protocol.rerank import Document, Ranking, RerankRequest, RerankResult, read_rerank_request
from penstock.replica.model import Served
from penstock.replica.ranking import Ranker
from penstock.replica.request_timeout import read_request_timeout

# Jina's; vLLM's; that of Cohere's clients.
RERANK_PATHS = ("/v1/rerank", "/rerank", "/v2/rerank")


class RerankEndpoints:
    """Answers requests to order documents."""

    def __init__(self, model: Served, ranker: Ranker, limits: HttpLimits) -> None:
        self._model = model
        self._ranker = ranker
        self._limits = limits

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {("POST", path): Endpoint(self._rerank) for path in RERANK_PATHS}

    async def _rerank(self, exchange: Exchange) -> None:
        deadline = self._ranker.now() + read_request_timeout(exchange.headers)
        body = await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)
        request = await asyncio.to_thread(read_rerank_request, body)
        self._model.check_name(request.model)
        self._ranker.refuse_if_full()
        await unless_gone(exchange, self._answer(exchange, request, deadline))

    async def _answer(self, exchange: Exchange, request: RerankRequest, deadline: float) -> None:
        texts = request.texts
        exchange.log_fields |= {"model": self._model.name, "num_texts": len(texts)}
        scores, num_tokens = await self._ranker.rank(
            request.query, texts, request.max_tokens_per_doc, deadline
        )
        exchange.log_fields |= {"prompt_tokens": num_tokens}
        best = sorted(range(len(texts)), key=lambda index: -scores[index])[: request.top_n]
        shows = request.return_documents is not False
        answer = Ranking(
            id=new_id("rerank"),
            model=self._model.name,
            results=[
                RerankResult(
                    index=index,
                    relevance_score=scores[index],
                    document=Document(text=texts[index]) if shows else UNSET,
                )
                for index in best
            ],
            usage=PromptUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
        )
        await exchange.respond(200, msgspec.json.encode(answer))
