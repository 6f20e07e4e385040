"""What a model that generates serves beside generation: embeddings, rerank, tokens."""

from __future__ import annotations

from penstock.asgi.application import Endpoint
from penstock.asgi.settings import HttpLimits
from penstock.replica.embedding import DecoderEmbedder
from penstock.replica.embedding_endpoints import EmbeddingEndpoints
from penstock.replica.model import ServedModel
from penstock.replica.ranking import CosineRanker
from penstock.replica.rerank_endpoints import RerankEndpoints
from penstock.replica.token_endpoints import EncodeChat, TokenEndpoints


def decoder_endpoints(
    model: ServedModel, limits: HttpLimits, encode_chat: EncodeChat
) -> dict[tuple[str, str], Endpoint]:
    """The endpoints, for an application's table."""
    table = TokenEndpoints(model, encode_chat, limits).table()
    if (defaults := model.embedding) is not None:
        embedder = DecoderEmbedder(model.service)
        table |= EmbeddingEndpoints(model, embedder, defaults, limits).table()
        table |= RerankEndpoints(model, CosineRanker(model, embedder, defaults), limits).table()
    return table
