"""Requests for embeddings: OpenAI's fields and ours, each honoured or refused by name."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from openai.types.embedding_create_params import EmbeddingCreateParams

from penstock.base.errors import (
    ClientError,
    InvalidRequestError,
    UnknownParameterError,
    UnsupportedParameterError,
)
from penstock.protocol.embeddings import (
    MAX_INPUTS,
    UNBUILT,
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    PromptUsage,
    read_embedding_request,
)


def read(**fields: Any) -> EmbeddingRequest:
    """Reads the smallest request, changed by `fields`."""
    return read_embedding_request(json.dumps({"model": "m", "input": "x", **fields}).encode())


def test_every_field_of_openais_is_built() -> None:
    """As its client declares them."""
    known = {field.encode_name for field in msgspec.structs.fields(EmbeddingRequest)}
    assert set(EmbeddingCreateParams.__annotations__) <= known


@pytest.mark.parametrize(
    ("given_", "texts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["a"] * MAX_INPUTS, ["a"] * MAX_INPUTS),
        ([1] * (MAX_INPUTS + 1), [[1] * (MAX_INPUTS + 1)]),
    ],
)
def test_inputs_come_in_four_forms(given_: Any, texts: list[Any]) -> None:
    """One text or many, each as text or as token ids."""
    assert read(input=given_).texts == texts


def test_an_input_is_named_as_it_was_written() -> None:
    """For errors about it."""
    assert read(input="a").name_of(0) == "input"
    assert read(input=[1, 2]).name_of(0) == "input"
    assert read(input=["a", "b"]).name_of(1) == "input[1]"
    assert read(input=[[1], [2]]).name_of(1) == "input[1]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [1, [2]]}, "input[1]"),
        ({"input": [[2], "a"]}, "input[1]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": [-1]}, "input[0]"),
        ({"input": [1 << 31]}, "input[0]"),
        ({"input": [1 << 80]}, "input[0]"),
        ({"input": [True]}, "input[0]"),
        ({"input": [1.5]}, "input[0]"),
        ({"input": [[[1]]]}, "input[0][0]"),
        ({"input": None}, "input"),
        ({"input": {}}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 1.5}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"),
        ({"normalize": 1}, "normalize"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"model": "m" * 257}, "model"),
    ],
)
def test_a_wrong_value_is_named(fields: dict[str, Any], param: str) -> None:
    """By its path."""
    with pytest.raises(InvalidRequestError) as refused:
        read(**fields)
    assert refused.value.param == param


def test_unbuilt_fields_are_refused_and_neutral_ones_pass() -> None:
    """A field that nobody knows is refused always."""
    for name, neutral in UNBUILT.items():
        assert read(**{name: None}) == read(**{name: neutral[0]}) == read()
        with pytest.raises(UnsupportedParameterError):
            read(**{name: "something else"})
    with pytest.raises(UnknownParameterError):
        read(task="retrieval")


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8)
)
def test_any_input_is_read_or_refused(value: Any) -> None:
    """Nothing else is raised."""
    with suppress(ClientError):
        texts = read(input=value).texts
        assert texts
        assert all(texts)


def test_answers_are_openais() -> None:
    """In both encodings."""
    vector = [0.5, -1.25, 3.0]
    for value in (vector, struct.pack("<3f", *vector)):
        answer = EmbeddingList(
            data=[Embedding(index=0, embedding=value)],
            model="m",
            usage=PromptUsage(prompt_tokens=3, total_tokens=3),
        )
        sent = json.loads(msgspec.json.encode(answer))
        if isinstance(value, bytes):
            assert base64.b64decode(sent["data"][0]["embedding"]) == value
            sent["data"][0]["embedding"] = list(struct.unpack("<3f", value))
        read_back = CreateEmbeddingResponse.model_validate(sent, strict=True)
        assert read_back.data[0].embedding == vector
        assert read_back.usage.total_tokens == 3
