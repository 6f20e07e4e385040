"""Tools in requests, in a conversation's history and in answers, against OpenAI's own types."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletionAllowedToolChoiceParam,
    ChatCompletionAllowedToolsParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionNamedToolChoiceParam,
)
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall
from openai.types.chat.chat_completion_message_function_tool_call_param import Function
from openai.types.chat.chat_completion_named_tool_choice_param import Function as NamedFunction
from openai.types.shared_params import FunctionDefinition as TheirDefinition

from penstock.base.errors import ClientError, InvalidRequestError, UnknownParameterError
from penstock.protocol.strict import read_request
from penstock.protocol.tools import (
    MAX_DEPTH,
    MAX_TOOLS,
    AllowedTools,
    AllowedToolsChoice,
    AnswerFunction,
    AnswerToolCall,
    CalledFunction,
    FunctionDefinition,
    FunctionName,
    NamedTool,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Tools,
    ToolUse,
    check_history,
    is_deeper,
    resolve_tool_use,
)


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of a chat message that concerns tools."""

    role: str
    content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of a chat request that concerns tools."""

    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    messages: list[Message] = []


DECODER = msgspec.json.Decoder(Request)


def read(**fields: Any) -> Request:
    """Decodes strictly, as a chat request is."""
    return read_request(json.dumps(fields).encode(), DECODER, {})


def use(**fields: Any) -> ToolUse | None:
    """What the fields come to."""
    request = read(**fields)
    return resolve_tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)


def definition(name: str = "f", **function: Any) -> dict[str, Any]:
    """One tool, as a client writes it."""
    return {"type": "function", "function": {"name": name, **function}}


def called(arguments: str = "{}", id_: str = "c1", **fields: Any) -> dict[str, Any]:
    """One call, as a client sends it back."""
    return {"id": id_, "type": "function", "function": {"name": "f", "arguments": arguments}, **fields}


def refused(**fields: Any) -> str | None:
    """The field at fault."""
    with pytest.raises(ClientError) as caught:
        use(**fields)
    assert caught.value.status == 400
    return caught.value.param


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Tool, ChatCompletionFunctionToolParam),
        (FunctionDefinition, TheirDefinition),
        (NamedTool, ChatCompletionNamedToolChoiceParam),
        (FunctionName, NamedFunction),
        (AllowedToolsChoice, ChatCompletionAllowedToolChoiceParam),
        (AllowedTools, ChatCompletionAllowedToolsParam),
        (ToolCall, ChatCompletionMessageFunctionToolCallParam),
        (CalledFunction, Function),
    ],
)
def test_every_field_of_openais_types_is_built(ours: Any, theirs: Any) -> None:
    """Measured on the installed client; `type` is the tag of some of ours, `index` is what clients add."""
    fields = {field.encode_name for field in msgspec.structs.fields(ours)}
    assert set(theirs.__annotations__) - {"type"} == fields - {"type", "index"}


def names(tools: tuple[Tool, ...]) -> list[str]:
    """Of tools."""
    return [tool.function.name for tool in tools]


ALL = [definition("f"), definition("g"), definition("h")]
NAMED = {"type": "function", "function": {"name": "g"}}


def allowed(mode: str, *tools: Any) -> dict[str, Any]:
    """A choice of several tools."""
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("fields", "callable_", "is_forced", "is_parallel"),
    [
        ({}, "fgh", False, True),
        ({"tool_choice": "auto"}, "fgh", False, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, "fgh", False, False),
        ({"tool_choice": "required"}, "fgh", True, True),
        ({"tool_choice": "required", "parallel_tool_calls": False}, "fgh", True, False),
        ({"tool_choice": NAMED, "parallel_tool_calls": True}, "g", True, False),
        ({"tool_choice": allowed("auto", NAMED, NAMED)}, "g", False, True),
        ({"tool_choice": allowed("required", *ALL[1:])},
         "gh", True, True),
        ({"tool_choice": allowed("required", NAMED, definition("f"))},
         "gf", True, True),
    ],
)  # fmt: skip
def test_the_choice_says_which_tools_may_and_must_be_called(
    fields: dict[str, Any], callable_: str, is_forced: bool, is_parallel: bool
) -> None:
    """The model is shown all of them."""
    found = use(tools=ALL, **fields)
    assert found is not None
    assert names(found.shown) == ["f", "g", "h"]
    assert "".join(names(found.callable)) == callable_
    assert (found.is_forced, found.is_parallel) == (is_forced, is_parallel)


@pytest.mark.parametrize(
    "fields",
    [{}, {"tools": []}, {"tools": None, "tool_choice": "auto"}, {"tool_choice": "none"},
     {"tools": ALL, "tool_choice": "none"}, {"tools": [], "tool_choice": None, "parallel_tool_calls": False}],
)  # fmt: skip
def test_no_tools_are_used_where_there_are_none_or_none_is_chosen(fields: dict[str, Any]) -> None:
    """Neither shown nor looked for in the answer."""
    assert use(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": ALL[:1], "tool_choice": NAMED}, "tool_choice.function.name"),
        ({"tools": ALL, "tool_choice": "any"}, "tool_choice"),
        ({"tools": ALL, "tool_choice": 1}, "tool_choice"),
        ({"tools": ALL, "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
        ({"tools": ALL, "tool_choice": {"function": {"name": "f"}}}, "tool_choice.type"),
        ({"tools": ALL, "tool_choice": {**NAMED, "x": 1}}, "tool_choice.x"),
        ({"tools": ALL[1:], "tool_choice": allowed("auto", NAMED, definition("f"))},
         "tool_choice.allowed_tools.tools[1].function.name"),
        ({"tools": ALL, "tool_choice": allowed("auto")},
         "tool_choice.allowed_tools.tools"),
        ({"tools": ALL, "tool_choice": allowed("none", NAMED)},
         "tool_choice.allowed_tools.mode"),
        ({"tools": ALL, "parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"tools": [*ALL, definition("f")]}, "tools[3].function.name"),
        ({"tools": [definition(f"f{i}") for i in range(MAX_TOOLS + 1)]}, "tools"),
        ({"tools": [definition("f", parameters={"type": "string"})]}, "tools[0].function.parameters.type"),
        ({"tools": [definition("f", parameters={"type": ["object"]})]}, "tools[0].function.parameters.type"),
        ({"tools": [definition("f", parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [definition("f", parameters=True)]}, "tools[0].function.parameters"),
        ({"tools": [definition("f", strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [definition("f", x=1)]}, "tools[0].function.x"),
        ({"tools": [definition("f", description=1)]}, "tools[0].function.description"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": {}}, "tools"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    """A 400 with the path of the field."""
    assert refused(**fields) == param


@pytest.mark.parametrize(
    "name", ["", "a" * 65, "a b", "a.b", "é", "a\n", "a\x00", "<|im_end|>", 'a"', None, 1]
)
def test_names_are_letters_digits_dashes_and_underlines(name: Any) -> None:
    """They go into grammars and prompts as they are."""
    assert refused(tools=[definition(name)]) == "tools[0].function.name"
    assert refused(tools=ALL, tool_choice={"type": "function", "function": {"name": name}}) is not None


def nested(depth: int) -> dict[str, Any]:
    """A schema of this many levels."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"properties": value}
    return value


def test_nesting_has_a_bound() -> None:
    """In schemas and in arguments, which templates walk by recursion."""
    assert use(tools=[definition(parameters=nested(MAX_DEPTH))]) is not None
    assert refused(tools=[definition(parameters=nested(MAX_DEPTH + 1))]) == "tools[0].function.parameters"
    assert read_and_check(called(json.dumps(nested(MAX_DEPTH)))) is None
    assert read_and_check(called(json.dumps(nested(MAX_DEPTH + 1)))) == ARGUMENTS
    assert read_and_check(called("[" * 100_000)) == ARGUMENTS
    assert not is_deeper([[1], {"a": 2}], 2)
    assert is_deeper([[1], {"a": []}], 2)
    assert not is_deeper(1, 0)


ARGUMENTS = "messages[0].tool_calls[0].function.arguments"


def read_and_check(*calls: Any) -> str | None:
    """The field at fault in an assistant's message with these calls, None if none is."""
    try:
        check_history(read(messages=[{"role": "assistant", "tool_calls": list(calls)}]).messages)
    except (InvalidRequestError, UnknownParameterError) as error:
        return error.param
    return None


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "null",
        "[]",
        '"{}"',
        "1",
        "{",
        "{}x",
        '{"a": NaN}',
        "{'a': 1}",
        "\x00",
        '{"a": "\\ud800"}',
        '{"a": 1e999}',
    ],
)
def test_arguments_are_a_json_object(arguments: str) -> None:
    """Templates are given what they decode to."""
    assert read_and_check(called(), called(arguments, "c2")) == ARGUMENTS.replace(
        "tool_calls[0]", "tool_calls[1]"
    )


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({"id": "c", "function": {"name": "f"}}, "messages[0].tool_calls[0].function.arguments"),
        (
            {"id": "c", "function": {"name": "f", "arguments": {}}},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"function": {"name": "f", "arguments": "{}"}}, "messages[0].tool_calls[0].id"),
        ({"id": "", "function": {"name": "f", "arguments": "{}"}}, "messages[0].tool_calls[0].id"),
        ({"id": "c" * 257, "function": {"name": "f", "arguments": "{}"}}, "messages[0].tool_calls[0].id"),
        (
            {"id": "c", "function": {"name": "f g", "arguments": "{}"}},
            "messages[0].tool_calls[0].function.name",
        ),
        (
            {"id": "c", "type": "custom", "custom": {"name": "f", "input": ""}},
            "messages[0].tool_calls[0].type",
        ),
        (called(x=1), "messages[0].tool_calls[0].x"),
    ],
)
def test_a_call_that_is_malformed_is_named(call: dict[str, Any], param: str) -> None:
    """With the indices of message and call."""
    assert read_and_check(call) == param


def test_calls_as_clients_send_them_back_are_read() -> None:
    """With the index that streams have, without the type, none at all."""
    assert (
        read_and_check(called(index=0), {"id": "c2", "function": {"name": "f", "arguments": " {} "}}) is None
    )
    assert read_and_check() is None
    assert read_and_check(called(), called()) == "messages[0].tool_calls[1].id"


USER = {"role": "user", "content": "x"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [called(id_="a"), called(id_="b")]}


def answering(id_: str | None) -> dict[str, Any]:
    """A tool's result."""
    return {"role": "tool", "content": "1", "tool_call_id": id_}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, CALLING, answering("b"), answering("a"), USER], None),
        ([USER, CALLING, answering("a"), USER], None),
        ([USER, CALLING, answering("a"), USER, answering("b")], None),
        ([CALLING, answering("a"), answering("b"), CALLING, answering("a")], None),
        ([USER, answering("a")], "messages[1].tool_call_id"),
        ([USER, answering("a"), CALLING], "messages[1].tool_call_id"),
        ([USER, CALLING, answering("c")], "messages[2].tool_call_id"),
        ([USER, CALLING, answering("x" * 100_000)], "messages[2].tool_call_id"),
        ([USER, CALLING, answering("a"), answering("a")], "messages[3].tool_call_id"),
        ([USER, CALLING, answering(None)], "messages[2].tool_call_id"),
        ([USER, {**USER, "tool_call_id": "a"}], "messages[1].tool_call_id"),
        ([{**CALLING, "role": "user"}], "messages[0].tool_calls"),
        ([{**CALLING, "role": "tool", "tool_call_id": "a"}], "messages[0].tool_calls"),
    ],
)
def test_a_result_answers_an_earlier_call_once(messages: list[dict[str, Any]], param: str | None) -> None:
    """In any order, and not every call must be answered."""
    read_messages = read(messages=messages).messages
    if param is None:
        check_history(read_messages)
        return
    with pytest.raises(InvalidRequestError) as caught:
        check_history(read_messages)
    assert caught.value.param == param
    assert len(caught.value.message) < 400


@given(st.text(), st.text())
def test_whatever_arguments_say_is_an_object_or_refused(key: str, text: str) -> None:
    """No other error comes of them."""
    assert read_and_check(called(json.dumps({key: text}))) is None
    assert read_and_check(called(text)) in (None, ARGUMENTS)


def test_answers_are_openais() -> None:
    """Read by the types of the installed client, extra fields refused."""
    whole = AnswerToolCall(id="c1", function=AnswerFunction(name="f", arguments='{"a": 1}'))
    written = msgspec.to_builtins(whole)
    assert ChatCompletionMessageFunctionToolCall.model_validate(written).model_dump() == written
    assert written == {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    for delta, expected in (
        (
            ToolCallDelta.opening(0, "c1", "f"),
            {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}},
        ),
        (ToolCallDelta.more(1, '{"'), {"index": 1, "function": {"arguments": '{"'}}),
    ):
        assert msgspec.to_builtins(delta) == json.loads(msgspec.json.encode(delta)) == expected
        read_back = ChoiceDeltaToolCall.model_validate(expected)
        assert read_back.model_dump(exclude_unset=True) == expected
