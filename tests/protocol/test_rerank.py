"""Requests to rerank: Jina's and Cohere's shape."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from penstock.base.errors import InvalidRequestError, UnknownParameterError, UnsupportedParameterError
from penstock.protocol.embeddings import PromptUsage
from penstock.protocol.rerank import (
    MAX_DOCUMENTS,
    UNBUILT,
    Document,
    Ranking,
    RerankRequest,
    RerankResult,
    read_rerank_request,
)


def read(**fields: Any) -> RerankRequest:
    """Reads the smallest request, changed by `fields`."""
    return read_rerank_request(
        json.dumps({"model": "m", "query": "q", "documents": ["d"], **fields}).encode()
    )


def test_documents_come_as_text_and_as_objects() -> None:
    """Mixed, too; an empty one is a document."""
    assert read(documents=["a", {"text": "b"}, ""]).texts == ["a", "b", ""]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": 5}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["d"] * (MAX_DOCUMENTS + 1)}, "documents"),
        ({"documents": [5]}, "documents[0]"),
        ({"documents": [{}]}, "documents[0].text"),
        ({"documents": "d"}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"return_documents": "yes"}, "return_documents"),
    ],
)
def test_a_wrong_value_is_named(fields: dict[str, Any], param: str) -> None:
    """By its path."""
    with pytest.raises(InvalidRequestError) as refused:
        read(**fields)
    assert refused.value.param == param


def test_unknown_fields_are_refused_in_documents_too() -> None:
    """A title that were ignored would change nothing."""
    with pytest.raises(UnknownParameterError) as refused:
        read(documents=[{"text": "d", "title": "t"}])
    assert refused.value.param == "documents[0].title"
    with pytest.raises(UnknownParameterError):
        read(instruction="be strict")


def test_unbuilt_fields_are_refused_and_neutral_ones_pass() -> None:
    """Null always does."""
    for name, neutral in UNBUILT.items():
        assert read(**{name: None}) == read(**{name: neutral[0]}) == read()
        with pytest.raises(UnsupportedParameterError):
            read(**{name: "something else"})


def test_a_document_that_is_left_out_is_no_null() -> None:
    """Clients tell them apart."""
    ranking = Ranking(
        id="rerank-1",
        model="m",
        results=[
            RerankResult(index=1, relevance_score=0.5),
            RerankResult(index=0, relevance_score=0.25, document=Document(text="d")),
        ],
        usage=PromptUsage(prompt_tokens=7, total_tokens=7),
    )
    assert json.loads(msgspec.json.encode(ranking)) == {
        "id": "rerank-1",
        "model": "m",
        "results": [
            {"index": 1, "relevance_score": 0.5},
            {"index": 0, "relevance_score": 0.25, "document": {"text": "d"}},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
