"""Text completions against OpenAI's own types."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion as OpenAICompletion
from openai.types.completion_create_params import CompletionCreateParamsBase

from penstock.base.errors import (
    ClientError,
    InvalidRequestError,
    UnknownParameterError,
    UnsupportedParameterError,
)
from penstock.protocol.completions import (
    DEFAULT_MAX_TOKENS,
    MAX_PROMPTS,
    UNBUILT,
    Completion,
    CompletionChoice,
    CompletionRequest,
    read_completion_request,
)
from penstock.protocol.usage import Usage

ASKS: dict[str, list[Any]] = {
    "best_of": [3],
    "suffix": ["end"],
}
KNOWN = {field.encode_name for field in msgspec.structs.fields(CompletionRequest)}


def read(**fields: Any) -> CompletionRequest:
    """Reads the smallest request, changed by `fields`."""
    return read_completion_request(json.dumps({"model": "m", "prompt": "x", **fields}).encode())


def test_every_field_of_openais_schema_is_built_or_refused_by_name() -> None:
    """Measured on the installed client."""
    theirs = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert theirs - KNOWN - set(UNBUILT) == set()
    assert KNOWN & set(UNBUILT) == set()
    assert set(ASKS) == set(UNBUILT)


@pytest.mark.parametrize(("field", "value"), [(f, value) for f, values in ASKS.items() for value in values])
def test_asking_for_what_is_not_built_is_refused_by_name(field: str, value: Any) -> None:
    """Each is a 400 with the field."""
    with pytest.raises(UnsupportedParameterError) as caught:
        read(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("field", "value"), [(f, value) for f, values in UNBUILT.items() for value in (None, *values)]
)
def test_values_that_change_nothing_are_accepted(field: str, value: Any) -> None:
    """The request read is the one without them."""
    assert read(**{field: value}) == read()


@pytest.mark.parametrize("field", ["messages", "max_completion_tokens", "tools", "x"])
def test_fields_of_other_endpoints_are_unknown(field: str) -> None:
    """Chat's are not this endpoint's."""
    with pytest.raises(UnknownParameterError) as caught:
        read(**{field: 1})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("x", ["x"]),
        (["x"], ["x"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2]], [[1, 2]]),
        ([[1], "b"], [[1], "b"]),
    ],
)
def test_prompts_are_texts_or_token_ids_one_or_many(prompt: Any, prompts: list[Any]) -> None:
    """A flat list of numbers is one prompt."""
    assert read(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", [[], [["x"], 1], [1, "a"], [-1], [[-1]], ["x"] * (MAX_PROMPTS + 1)])
def test_other_lists_are_refused(prompt: Any) -> None:
    """Not read as something else, and not cut."""
    with pytest.raises(ClientError) as caught:
        read(prompt=prompt)
    assert caught.value.param is not None
    assert caught.value.param.startswith("prompt")


def test_no_tokens_may_be_asked_for_with_the_echo() -> None:
    """That is how the prompt's own log-probabilities are had."""
    assert read(max_tokens=0, echo=True, logprobs=1).limit.asked == 0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"model": 1}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(change: dict[str, Any], param: str) -> None:
    """400 with the field."""
    with pytest.raises(InvalidRequestError) as caught:
        read(**change)
    assert caught.value.param == param


def test_the_limit_has_openais_default() -> None:
    """Sixteen tokens where nothing was asked for."""
    assert (read().limit.asked, read().limit.default) == (None, DEFAULT_MAX_TOKENS)
    assert read(max_tokens=3).limit.asked == 3


@given(st.binary(max_size=40), st.sampled_from(["prompt", "model", "stop", "suffix"]))
def test_any_bytes_as_a_value_are_a_request_or_a_clients_error(value: bytes, field: str) -> None:
    """Nothing else may come out."""
    body = b'{"model":"m","prompt":"x","' + field.encode() + b'":' + value + b"}"
    with suppress(InvalidRequestError, UnsupportedParameterError, UnknownParameterError):
        assert isinstance(read_completion_request(body), CompletionRequest)


def test_an_answer_parses_strictly_and_has_nothing_else() -> None:
    """With OpenAI's own type."""
    choice = CompletionChoice(text="hi", finish_reason="length")
    body = msgspec.json.encode(
        Completion(id="cmpl-1", created=5, model="m", choices=[choice], usage=Usage.of(1, 1))
    )
    parsed = OpenAICompletion.model_validate_json(body, strict=True)
    assert (parsed.choices[0].text, parsed.choices[0].finish_reason) == ("hi", "length")
    assert not any((parsed.model_extra, parsed.choices[0].model_extra))


def test_a_chunk_leaves_the_usage_out_unless_asked() -> None:
    """One shape for both; a null only where the stream will end with the usage."""
    body = msgspec.json.encode(Completion(id="c", created=5, model="m", choices=[CompletionChoice(text="h")]))
    assert "usage" not in json.loads(body)
    assert json.loads(body)["choices"][0]["finish_reason"] is None
