"""A real encoder behind `penstock up`, which runs `penstock engine`, asked by the official client."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from running_service import RunningService
from tiny_encoders import REAL

TEXTS = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The parliament passed a law."]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """http://host:port of a service with the encoder; its name is its folder's."""
    with RunningService("up", "--model", str(REAL), "--port", "0") as service:
        yield service.wait_announced()
        assert f'"model":"{REAL.name}","input"' in service.stdout


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def post(address: str, path: str, **fields: Any) -> Any:
    """The JSON of an answer."""
    body = json.dumps({"model": REAL.name, **fields}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{address}{path}", body), timeout=60) as answer:
        return json.load(answer)


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    """As any other."""
    assert [model.id for model in client.models.list()] == [REAL.name]


def test_both_encodings_give_the_same_vectors(client: openai.OpenAI) -> None:
    """base64, which the client asks for by itself, and lists of numbers."""
    packed = client.embeddings.create(model=REAL.name, input=TEXTS)
    listed = client.embeddings.create(model=REAL.name, input=TEXTS, encoding_format="float")
    one, other = ([item.embedding for item in answer.data] for answer in (packed, listed))
    np.testing.assert_allclose(one, other, atol=1e-7)
    assert packed.usage == listed.usage
    vectors = np.array(other)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_dimensions_and_token_ids(client: openai.OpenAI, address: str) -> None:
    """Through the client's own fields."""
    short = client.embeddings.create(model=REAL.name, input=TEXTS[0], dimensions=64).data[0].embedding
    assert len(short) == 64
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-6)
    tokens = post(address, "/tokenize", prompt=TEXTS[0])["tokens"]
    by_ids = client.embeddings.create(model=REAL.name, input=tokens).data[0].embedding
    by_text = client.embeddings.create(model=REAL.name, input=TEXTS[0]).data[0].embedding
    np.testing.assert_allclose(by_ids, by_text, atol=1e-6)


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    """Too long a text; a chat with a model that does not chat."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=REAL.name, input=["short", "long " * 500])
    assert (refused.value.param, refused.value.code) == ("input[1]", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match="does not generate"):
        client.chat.completions.create(model=REAL.name, messages=[{"role": "user", "content": "hi"}])


def test_documents_are_ranked_and_tokens_come_back_through_the_gateway(address: str) -> None:
    """Under every path."""
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        results = post(address, path, query="sleeping animals", documents=TEXTS[::-1], top_n=2)["results"]
        assert {one["index"] for one in results} == {1, 2}
    tokens = post(address, "/tokenize", prompt="hello")["tokens"]
    assert post(address, "/detokenize", tokens=tokens) == {"prompt": "[CLS] hello [SEP]"}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(address, "/detokenize", tokens=[10**6])
