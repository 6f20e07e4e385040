"""How relevant documents are to a query: by a cross-encoder's head, or by the angle between embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from penstock.base.errors import ContextLengthError, EngineError
from penstock.engine.encoder import EncoderInput
from penstock.engine.encoder_service import EncoderService
from penstock.replica.embedding import Embedder, encode_in_turns, encode_text, finish, refuse_long
from penstock.replica.embedding_defaults import EmbeddingDefaults
from penstock.replica.model import CHARACTERS_PER_TOKEN, Served


class Ranker(Protocol):
    """Scores documents against a query."""

    def now(self) -> float:
        """Seconds on the clock by which deadlines are given."""
        ...

    def refuse_if_full(self) -> None:
        """Raises QueueFullError if a request could not be taken now."""
        ...

    async def rank(
        self, query: str, documents: Sequence[str], max_tokens: int | None, deadline: float
    ) -> tuple[list[float], int]:
        """Each document's score, higher for more relevant ones, and the number of tokens computed.

        Documents are cut to `max_tokens`, or to what the model takes if that is less; None: not at all.

        Raises:
            ContextLengthError: the query, or a document that is not to be cut, is too long for the model.
            PenstockError: what the engine raises.
        """
        ...


class CosineRanker:
    """The cosine between the embeddings of query and document, -1 to 1."""

    def __init__(self, model: Served, embedder: Embedder, defaults: EmbeddingDefaults) -> None:
        self._model = model
        self._embedder = embedder
        self._defaults = defaults
        self.now = embedder.now
        self.refuse_if_full = embedder.refuse_if_full

    async def rank(
        self, query: str, documents: Sequence[str], max_tokens: int | None, deadline: float
    ) -> tuple[list[float], int]:
        """See Ranker."""
        limit = None if max_tokens is None else max_tokens + self._model.tokenizer.num_added()

        def encode(start: int, end: int) -> list[list[int]]:
            return [
                encode_text(self._model, documents[index], f"documents[{index}]", limit)
                for index in range(start, end)
            ]

        own = await asyncio.to_thread(encode_text, self._model, query, "query")
        texts = [own, *await encode_in_turns(list(map(len, documents)), encode, self.now, deadline)]
        vectors = await self._embedder.embed(texts, self._defaults.pooling, deadline)
        matrix = finish(vectors, None, normalise=True)
        return (matrix[1:] @ matrix[0]).tolist(), sum(map(len, texts))


class CrossRanker:
    """The sigmoid of a cross-encoder's score of query and document together, 0 to 1."""

    def __init__(self, model: Served, service: EncoderService) -> None:
        self._model = model
        self._service = service
        self.now = service.now
        self.refuse_if_full = service.refuse_if_full

    async def rank(
        self, query: str, documents: Sequence[str], max_tokens: int | None, deadline: float
    ) -> tuple[list[float], int]:
        """See Ranker."""
        room = await asyncio.to_thread(self._room, query)
        cut = None if max_tokens is None else min(max_tokens, room)

        def encode(start: int, end: int) -> list[EncoderInput]:
            return self._encode(query, documents, range(start, end), cut)

        pairs = await encode_in_turns(list(map(len, documents)), encode, self.now, deadline)
        scores = np.array(await self._service.score(pairs, deadline))
        if not np.isfinite(scores).all():
            raise EngineError("the model computed scores that are no numbers; try dtype float32")
        # The sigmoid, written so that no exponential overflows and small values keep their digits.
        relevance = np.exp(np.minimum(scores, 0)) / (1 + np.exp(-np.abs(scores)))
        return relevance.tolist(), sum(len(pair.tokens) for pair in pairs)

    def _room(self, query: str) -> int:
        """Tokens that are left for a document beside the query."""
        self._model.refuse_long_text(len(query), "query")
        added = self._model.tokenizer.num_added(is_pair=True)
        num_query = len(self._model.tokenizer.encode(query, add_special_tokens=False))
        room = self._model.max_model_len - added - num_query
        if room < 1:
            raise ContextLengthError(
                f"'query' has {num_query} tokens and leaves no room for documents: the model takes "
                f"{self._model.max_model_len} for both, {added} special ones among them",
                param="query",
            )
        return room

    def _encode(
        self, query: str, documents: Sequence[str], indices: range, cut: int | None
    ) -> list[EncoderInput]:
        """The pairs of some of the documents."""
        texts = []
        for index in indices:
            if cut is None:
                self._model.refuse_long_text(len(documents[index]), f"documents[{index}]")
            texts.append(documents[index] if cut is None else documents[index][: cut * CHARACTERS_PER_TOKEN])
        pairs = self._model.tokenizer.encode_pairs(query, texts, cut)
        for index, (tokens, _) in zip(indices, pairs, strict=True):
            refuse_long(self._model, len(tokens), f"documents[{index}]")
        return [EncoderInput(tokens, types) for tokens, types in pairs]
