"""Chat requests against OpenAI's own types; the answers are in test_chat_answers.py."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from penstock.base.errors import (
    ClientError,
    InvalidRequestError,
    UnknownParameterError,
    UnsupportedParameterError,
)
from penstock.protocol.chat import (
    UNBUILT,
    UNBUILT_IN_MESSAGE,
    UNBUILT_IN_PART,
    ChatRequest,
    ContentPart,
    Message,
    read_chat_request,
)
from penstock.protocol.generation import StreamOptions

# For every field that is not built, something a client may really ask of it.
ASKS: dict[str, list[Any]] = {
    "audio": [{"voice": "alloy", "format": "wav"}],
    "function_call": [{"name": "f"}],
    "functions": [[{"name": "f"}]],
    "metadata": [{"a": "b"}],
    "modalities": [["text", "audio"], ["audio"], []],
    "moderation": [{"model": "omni"}],
    "prediction": [{"type": "content", "content": "x"}],
    "prompt_cache_key": ["k"],
    "prompt_cache_options": [{"mode": "explicit"}, {}],
    "prompt_cache_retention": ["24h", "in_memory"],
    "reasoning_effort": ["none", "low", "high"],
    "safety_identifier": ["s"],
    "store": [True],
    "verbosity": ["low", "high"],
    "web_search_options": [{}],
}
# All of them are a 400 with the field.
REFUSALS = (InvalidRequestError, UnsupportedParameterError, UnknownParameterError)
DEEP = b"[" * 100_000 + b"]" * 100_000
KNOWN = {field.encode_name for field in msgspec.structs.fields(ChatRequest)}


def request(**fields: Any) -> dict[str, Any]:
    """The smallest request, changed by `fields`."""
    return {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}


def read(value: Any) -> ChatRequest:
    """Reads a request given as Python values."""
    return read_chat_request(json.dumps(value).encode())


def read_message(**message: Any) -> Message:
    """Reads a request whose only message is this one."""
    return read(request(messages=[message])).messages[0]


def test_every_field_of_openais_schema_is_built_or_refused_by_name() -> None:
    """Measured on the installed client; `stream` is in its two variants, not in their base."""
    theirs = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert theirs - KNOWN - set(UNBUILT) == set()
    assert KNOWN & set(UNBUILT) == set()


def test_every_stream_option_of_openais_schema_is_known() -> None:
    """Declared, and so honoured or refused."""
    ours = {field.encode_name for field in msgspec.structs.fields(StreamOptions)}
    assert set(ChatCompletionStreamOptionsParam.__annotations__) == ours


@pytest.mark.parametrize(
    "theirs",
    [
        ChatCompletionSystemMessageParam,
        ChatCompletionDeveloperMessageParam,
        ChatCompletionUserMessageParam,
        ChatCompletionAssistantMessageParam,
        ChatCompletionToolMessageParam,
    ],
)
def test_every_field_of_openais_messages_is_built_or_refused_by_name(theirs: Any) -> None:
    """For the roles that are built."""
    built = {field.encode_name for field in msgspec.structs.fields(Message)}
    assert set(theirs.__annotations__) - built - set(UNBUILT_IN_MESSAGE) == set()


def test_every_field_of_openais_text_parts_is_built_or_refused_by_name() -> None:
    """The parts of other types are refused by their type."""
    built = {field.encode_name for field in msgspec.structs.fields(ContentPart)}
    assert set(ChatCompletionContentPartTextParam.__annotations__) - built - UNBUILT_IN_PART == set()


def test_the_table_of_asks_covers_the_table_of_unbuilt_fields() -> None:
    """So that the next test leaves none out."""
    assert set(ASKS) == set(UNBUILT)


@pytest.mark.parametrize(("field", "value"), [(f, value) for f, values in ASKS.items() for value in values])
def test_asking_for_what_is_not_built_is_refused_by_name(field: str, value: Any) -> None:
    """None is ignored in silence."""
    with pytest.raises(UnsupportedParameterError) as caught:
        read(request(**{field: value}))
    assert caught.value.param == field
    assert (caught.value.code, caught.value.status) == ("unsupported_parameter", 400)


@pytest.mark.parametrize(
    ("field", "value"), [(f, value) for f, values in UNBUILT.items() for value in (None, *values)]
)
def test_values_that_change_nothing_are_accepted(field: str, value: Any) -> None:
    """Clients spell defaults out; the request read is the one without them."""
    assert read(request(**{field: value})) == read(request())


def test_an_unknown_field_is_refused() -> None:
    """Typing errors and other servers' inventions."""
    with pytest.raises(UnknownParameterError) as caught:
        read(request(temprature=0.5))
    assert caught.value.param == "temprature"


def test_null_is_the_same_as_left_out() -> None:
    """For every built field that is optional."""
    optional = dict.fromkeys(KNOWN - {"model", "messages"})
    assert read(request(**optional)) == read(request())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": None}]},
         "messages[1].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": 5, "text": "x"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_completion_tokens": 3, "max_tokens": 3}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 1 << 63}, "seed"),
        ({"seed": 10**40}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"user": 5}, "user"),
        ({"user": "x" * 257}, "user"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_path(change: dict[str, Any], param: str) -> None:
    """400, and the field is named in the message too."""
    with pytest.raises(InvalidRequestError) as caught:
        read(request(**change))
    assert caught.value.param == param
    assert param.rpartition(".")[2] in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}],
          "response_format": {"type": "json_object"}},
         "response_format"),
        ({"regex": "a", "grammar": "start: \"a\""}, "grammar"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 3}, "min_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required",
          "ignore_eos": True}, "ignore_eos"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]},
         "messages[0].reasoning_content"),
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_do_not_fit_together_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """Which of them to leave out is said."""
    with pytest.raises(InvalidRequestError) as caught:
        read(request(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "content": "x", "name": "f"}, "messages[1].role"),
        ({"role": "user", "content": "x", "name": "joe"}, "messages[1].name"),
        ({"role": "assistant", "content": "x", "refusal": "no"}, "messages[1].refusal"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[1].function_call"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[1].audio"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
         "messages[1].content[1].type"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {}}]},
         "messages[1].content[0].prompt_cache_breakpoint"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[1].content[0].type"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]},
         "messages[1].content[0].type"),
    ],
)  # fmt: skip
def test_what_is_not_built_inside_a_message_is_refused_with_its_path(
    message: dict[str, Any], param: str
) -> None:
    """Names, images, what tools replaced: named, not dropped."""
    with pytest.raises(UnsupportedParameterError) as caught:
        read(request(messages=[{"role": "user", "content": "x"}, message]))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "colour": 1}, "messages[0].colour"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "colour": 1}]},
         "messages[0].content[0].colour"),
    ],
)  # fmt: skip
def test_an_unknown_field_inside_a_message_is_refused_with_its_path(
    message: dict[str, Any], param: str
) -> None:
    """In the message and in its parts."""
    with pytest.raises(UnknownParameterError) as caught:
        read(request(messages=[message]))
    assert caught.value.param == param


def test_obfuscation_may_be_declined_and_not_asked_for() -> None:
    """The one stream option that is not built."""
    assert read(request(stream=True, stream_options={"include_obfuscation": False})).stream
    with pytest.raises(UnsupportedParameterError) as caught:
        read(request(stream=True, stream_options={"include_obfuscation": True}))
    assert caught.value.param == "stream_options.include_obfuscation"


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_contents_are_text_or_parts_of_text(role: str) -> None:
    """Parts are joined without anything between."""
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert read_message(role=role, content="a b").text == read_message(role=role, content=parts).text == "a b"
    assert read_message(role=role, content=[]).text == read_message(role=role, content="").text == ""


def test_an_assistants_turn_may_lack_its_content() -> None:
    """OpenAI allows it for this role only."""
    assert read_message(role="assistant").text == ""
    assert read_message(role="assistant", content=None).text == ""


def test_the_limit_names_the_field_that_was_sent() -> None:
    """An error about it must name what the client wrote."""
    old, new = read(request(max_tokens=3)).limit, read(request(max_completion_tokens=4)).limit
    assert (old.field, old.asked, old.default) == ("max_tokens", 3, None)
    assert (new.field, new.asked) == ("max_completion_tokens", 4)
    assert read(request()).limit.asked is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
message_values = st.dictionaries(
    st.sampled_from(["role", "content", *UNBUILT_IN_MESSAGE, "other"]),
    st.sampled_from(["user", "tool", "text", [], [{"type": "text", "text": "x"}], [{"type": []}]])
    | json_values,
    max_size=4,
)


@given(json_values)
def test_any_json_is_a_request_or_a_clients_error(value: Any) -> None:
    """NaN, Infinity and lone surrogates included, which Python's encoder writes."""
    with suppress(*REFUSALS):
        assert isinstance(read(value), ChatRequest)


@given(st.dictionaries(st.sampled_from(sorted(KNOWN | set(UNBUILT))), json_values, max_size=4))
def test_any_value_of_any_field_is_a_request_or_a_clients_error(fields: dict[str, Any]) -> None:
    """Around a request that is right."""
    with suppress(*REFUSALS):
        assert isinstance(read(request(**fields)), ChatRequest)


@given(st.lists(message_values, max_size=3))
def test_any_messages_are_a_request_or_a_clients_error(messages: list[Any]) -> None:
    """Inside the messages, where two readers meet."""
    with suppress(*REFUSALS):
        assert isinstance(read(request(messages=messages)), ChatRequest)


@given(st.binary(max_size=30), st.integers(0, 200))
def test_any_bytes_inside_a_request_are_a_request_or_a_clients_error(noise: bytes, place: int) -> None:
    """Broken UTF-8 in any place."""
    body = json.dumps(
        request(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}], "name": None}], n=1)
    ).encode()
    place %= len(body) + 1
    with suppress(*REFUSALS):
        assert isinstance(read_chat_request(body[:place] + noise + body[place:]), ChatRequest)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"x","name":"\xff"}]}',
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"te\xff"}]}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x","name":' + DEEP + b"}]}",
        b'{"model":"m","messages":[{"role":"user","content":' + DEEP + b"}]}",
    ],
)  # fmt: skip
def test_bombs_inside_a_message_are_a_clients_error(body: bytes) -> None:
    """Values that the first, coarse reading passes over unread."""
    with pytest.raises(ClientError):
        read_chat_request(body)


def test_the_last_of_two_messages_fields_is_checked_and_used() -> None:
    """The two readers agree on which of the doubles counts."""
    good, bad = '[{"role":"user","content":"x"}]', '[{"role":"user","content":"x","evil":1}]'
    read_chat_request(f'{{"model":"m","messages":{bad},"messages":{good}}}'.encode())
    with pytest.raises(UnknownParameterError):
        read_chat_request(f'{{"model":"m","messages":{good},"messages":{bad}}}'.encode())
