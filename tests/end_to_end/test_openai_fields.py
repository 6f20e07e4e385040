"""Every documented field through the official client: it works, or is a 400 that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
BOTH: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "logit_bias": {"5": -100},
    "max_tokens": 5,
    "n": 2,
    "presence_penalty": -0.5,
    "seed": 4,
    "stop": ["a", "b"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 1.5,
    "top_p": 0.5,
    "user": "someone",
}
# What an application may send of each field; fields that need others have them beside them.
CHAT: dict[str, Any] = {
    **BOTH,
    "logprobs": True,
    "max_completion_tokens": 5,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "model": "little",
    "parallel_tool_calls": False,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
    },
    "service_tier": "flex",
    "tool_choice": "required",
    "tools": [TOOL],
    "top_logprobs": 2,
}
REFUSED_IN_CHAT: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "safety_identifier": "s",
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
}
TEXT: dict[str, Any] = {**BOTH, "echo": True, "logprobs": 3, "model": "little", "prompt": ["Hi", "Ho"]}
REFUSED_IN_TEXT: dict[str, Any] = {"best_of": 3, "suffix": "end"}
NEEDS: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [TOOL]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "max_completion_tokens": {"max_tokens": openai.NOT_GIVEN},
    # A random model writes JSON for long; its numbers are few.
    "response_format": {"max_tokens": 60},
}


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    """The official one."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def ask(client: openai.OpenAI, kind: str, field: str, value: Any) -> Any:
    """Sends a small request with this field; a stream is read to its end."""
    if kind == "chat":
        base = {"model": "little", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        create: Any = client.chat.completions.create
    else:
        base = {"model": "little", "prompt": "Hi", "max_tokens": 8}
        create = client.completions.create
    given = {**base, **NEEDS.get(field, {}), field: value}
    answer = create(**given)
    return list(answer) if given.get("stream") else answer


def test_no_field_of_the_client_is_left_out() -> None:
    """Of the installed version."""
    assert {*CHAT, *REFUSED_IN_CHAT} == {*ChatParams.__annotations__, "stream"}
    assert {*TEXT, *REFUSED_IN_TEXT} == {*TextParams.__annotations__, "stream"}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("chat", *item) for item in CHAT.items()] + [("text", *item) for item in TEXT.items()],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_that_is_built_works(client: openai.OpenAI, kind: str, field: str, value: Any) -> None:
    """An answer comes, with what the field asks for where that shows."""
    answer = ask(client, kind, field, value)
    if isinstance(answer, list):
        assert answer
        if field == "stream_options":
            assert answer[-1].usage.total_tokens > 0
        return
    choices = answer.choices
    assert len(choices) == (2 if field in ("n", "prompt") else 1)
    if field in ("logprobs", "top_logprobs"):
        assert choices[0].logprobs is not None
    if field == "echo":
        assert choices[0].text.startswith("Hi")
    if field == "service_tier":
        assert answer.service_tier == "flex"
    if field == "response_format" and choices[0].finish_reason == "stop":
        assert json.loads(choices[0].message.content)["a"] in (1, 2)
    if field in ("max_tokens", "max_completion_tokens"):
        assert answer.usage.completion_tokens <= 5


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("chat", *item) for item in REFUSED_IN_CHAT.items()]
    + [("text", *item) for item in REFUSED_IN_TEXT.items()],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_that_is_not_built_is_a_400_with_its_name(
    client: openai.OpenAI, kind: str, field: str, value: Any
) -> None:
    """In `param` and in the message."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, kind, field, value)
    assert caught.value.param == field
    assert field in caught.value.message
