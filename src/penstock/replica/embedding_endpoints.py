"""/v1/embeddings over a model of any kind."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange, unless_gone
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import InvalidRequestError
from penstock.engine.pooling import Pooling
from penstock.protocol.embeddings import (
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    PromptUsage,
    Text,
    read_embedding_request,
)
from penstock.replica.embedding import (
    Embedder,
    encode_in_turns,
    encode_text,
    finish,
    refuse_long,
    refuse_unknown_tokens,
)
from penstock.replica.embedding_defaults import EmbeddingDefaults
from penstock.replica.model import Served
from penstock.replica.request_timeout import read_request_timeout

EMBEDDINGS = "/v1/embeddings"


class EmbeddingEndpoints:
    """Answers requests for vectors."""

    def __init__(
        self, model: Served, embedder: Embedder, defaults: EmbeddingDefaults, limits: HttpLimits
    ) -> None:
        self._model = model
        self._embedder = embedder
        self._defaults = defaults
        self._limits = limits

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {("POST", EMBEDDINGS): Endpoint(self._embed)}

    async def _embed(self, exchange: Exchange) -> None:
        deadline = self._embedder.now() + read_request_timeout(exchange.headers)
        body = await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)
        # Off the event loop, as all that grows with the request: two thousand texts take a while to read.
        request = await asyncio.to_thread(read_embedding_request, body)
        self._model.check_name(request.model)
        self._check(request)
        self._embedder.refuse_if_full()
        await unless_gone(exchange, self._answer(exchange, request, deadline))

    async def _answer(self, exchange: Exchange, request: EmbeddingRequest, deadline: float) -> None:
        texts = await self._encode(request, deadline)
        num_tokens = sum(map(len, texts))
        exchange.log_fields |= {
            **({"user": request.user} if request.user is not None else {}),
            "model": self._model.name,
            "num_texts": len(texts),
            "prompt_tokens": num_tokens,
        }
        pooling = self._defaults.pooling if request.pooling is None else Pooling(request.pooling)
        vectors = await self._embedder.embed(texts, pooling, deadline)
        normalise = self._defaults.is_normalised if request.normalize is None else request.normalize

        def encode() -> bytes:
            matrix = finish(vectors, request.dimensions, normalise=normalise)
            return self._encode_answer(matrix, num_tokens, as_bytes=request.encoding_format == "base64")

        await exchange.respond(200, await asyncio.to_thread(encode))

    def _encode_answer(self, matrix: NDArray[np.float32], num_tokens: int, *, as_bytes: bool) -> bytes:
        data = [
            Embedding(index=index, embedding=row.astype("<f4").tobytes() if as_bytes else row.tolist())
            for index, row in enumerate(matrix)
        ]
        usage = PromptUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)
        return msgspec.json.encode(EmbeddingList(data=data, model=self._model.name, usage=usage))

    def _check(self, request: EmbeddingRequest) -> None:
        if request.dimensions is not None and request.dimensions > self._defaults.size:
            raise InvalidRequestError(
                f"'dimensions' is {request.dimensions}; the model's vectors have {self._defaults.size}",
                param="dimensions",
            )
        cut, added = request.truncate_prompt_tokens, self._model.tokenizer.num_added()
        if cut is not None and -1 < cut <= added:
            raise InvalidRequestError(
                f"'truncate_prompt_tokens' is {cut}; the model needs {added} tokens around each text, and at "
                "least one in it",
                param="truncate_prompt_tokens",
            )

    async def _encode(self, request: EmbeddingRequest, deadline: float) -> list[list[int]]:
        cut, texts = request.truncate_prompt_tokens, request.texts
        limit = self._model.max_model_len if cut == -1 else cut

        def encode(start: int, end: int) -> list[list[int]]:
            return [
                self._encode_one(texts[index], request.name_of(index), limit) for index in range(start, end)
            ]

        return await encode_in_turns(list(map(len, texts)), encode, self._embedder.now, deadline)

    def _encode_one(self, text: Text, param: str, limit: int | None) -> list[int]:
        if isinstance(text, str):
            return encode_text(self._model, text, param, limit)
        refuse_unknown_tokens(self._model, text, param)
        tokens = text if limit is None else text[: min(limit, self._model.max_model_len)]
        refuse_long(self._model, len(tokens), param)
        return tokens
