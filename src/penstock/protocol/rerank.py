"""Reranking, in the shape that Jina's API and Cohere's share: request and answer."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from penstock.protocol.embeddings import PromptUsage
from penstock.protocol.generation import Name
from penstock.protocol.strict import Unbuilt, read_request

MAX_DOCUMENTS = 2_048  # ours

UNBUILT: Unbuilt = {"max_chunks_per_doc": (1,), "priority": (0,), "rank_fields": (["text"],)}


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document in the form of an object, as answers have it."""

    text: str


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that are built; null means the same as left out."""

    model: Name
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    """So many results, the best; None: all."""
    return_documents: bool | None = None
    """False leaves the documents out of the answer; else they are in it, as Jina has it."""
    max_tokens_per_doc: Annotated[int, Meta(ge=1)] | None = None
    """Cohere's: of each document keep so many tokens at the beginning, fewer if the model takes no more."""

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


_REQUEST = msgspec.json.Decoder(RerankRequest)


def read_rerank_request(body: bytes) -> RerankRequest:
    """Decodes and checks a request to rerank.

    Raises:
        InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
    """
    return read_request(body, _REQUEST, UNBUILT)


class RerankResult(msgspec.Struct, frozen=True, kw_only=True):
    """One document's relevance."""

    index: int
    """Of the document in the request."""
    relevance_score: float
    document: Document | UnsetType = UNSET


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, the most relevant document first; of equal ones the earlier first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: PromptUsage
