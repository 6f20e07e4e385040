"""The fields that chat and text completions share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.base.errors import ClientError, InvalidRequestError
from penstock.protocol.chat import ChatRequest, read_chat_request


def read(**fields: Any) -> ChatRequest:
    """Reads the smallest request, changed by `fields`."""
    value = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return read_chat_request(json.dumps(value).encode())


GOOD: list[dict[str, Any]] = [
    {"frequency_penalty": -2},
    {"frequency_penalty": 2.0},
    {"presence_penalty": 0.5},
    {"repetition_penalty": 1.3},
    {"logit_bias": {"0": -100, "50256": 100}},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 20},
    {"logprobs": False, "top_logprobs": 0},
    {"n": 128},
    {"stop": ["a", 5]},
    {"stop_token_ids": [1, 2]},
    {"ignore_eos": True},
    {"min_tokens": 0},
    {"priority": -3},
    {"service_tier": "flex"},
    {"service_tier": "priority", "priority": 0},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"frequency_penalty": False}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"²": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"stop": ["a", -5]}, "stop[1]"),
    ({"stop": [1, 2, 3, 4, 5]}, "stop"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"priority": "high"}, "priority"),
    ({"service_tier": "fast"}, "service_tier"),
    ({"service_tier": "flex", "priority": 1}, "service_tier"),
]


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_documented_values_are_read(fields: dict[str, Any]) -> None:
    """As they were given."""
    request = read(**fields)
    assert all(getattr(request, name) == value for name, value in fields.items())


@pytest.mark.parametrize(("fields", "param"), BAD, ids=str)
def test_values_out_of_range_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """A 400 that names the field."""
    with pytest.raises(ClientError) as caught:
        read(**fields)
    assert caught.value.status == 400
    assert caught.value.param == param


def test_stops_are_told_apart() -> None:
    """Texts are looked for in the text, token ids end the answer as the model's own end does."""
    request = read(stop=["a", 5], stop_token_ids=[7])
    assert (request.stop_strings, request.stop_tokens) == (("a",), {5, 7})
    assert (read(stop="a").stop_strings, read(stop="a").stop_tokens) == (("a",), frozenset())


@pytest.mark.parametrize(
    ("fields", "urgency"),
    [({}, 0), ({"priority": -5}, -5), ({"service_tier": "priority"}, -1), ({"service_tier": "flex"}, 1),
     ({"service_tier": "default"}, 0)],
)  # fmt: skip
def test_tier_and_priority_say_the_same(fields: dict[str, Any], urgency: int) -> None:
    """OpenAI's word and vLLM's number."""
    assert read(**fields).urgency == urgency


def test_biases_come_by_token() -> None:
    """In the order of their ids; equal ids in two spellings are one token twice, which is refused."""
    assert read(logit_bias={"9": 1, "2": -1}).biases == ((2, -1.0), (9, 1.0))
    with pytest.raises(InvalidRequestError):
        read(logit_bias={"5": 1, "05": 2})
