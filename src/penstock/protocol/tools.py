"""Tools in chat requests and answers: definitions, the choice among them, calls in a conversation's history.

Shapes are OpenAI's. A request type has `tools: Tools | None`, `tool_choice: ToolChoice | None` and
`parallel_tool_calls: bool | None`, and asks :func:`resolve_tool_use`; its messages go through
:func:`check_history`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from penstock.base.errors import InvalidRequestError
from penstock.protocol.strict import NOT_JSON, shown

MAX_TOOLS = 128  # OpenAI's limit
MAX_DEPTH = 64  # ours, of a schema and of arguments: templates and grammars walk them by recursion
MAX_ID_LENGTH = 256  # ours

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
CallId = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)]


class FunctionDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model is told of a function."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments, which are an object; None for any object."""
    strict: bool | None = None
    """Arguments must validate. They always do where a call is forced, see docs/tools.md."""


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]


class FunctionName(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function, by name."""

    name: ToolName


class NamedTool(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="function"
):
    """The choice of one tool, which must be called."""

    function: FunctionName


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some of the tools, and whether one must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="allowed_tools",
):
    """The choice among some of the tools; the model is shown all."""

    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request's fields about tools come to."""

    shown: tuple[Tool, ...]
    """The model is told of these."""
    callable: tuple[Tool, ...]
    """It may call these."""
    is_forced: bool
    """The answer must be a call; a grammar sees to it."""
    is_parallel: bool
    """It may call more than once."""


def resolve_tool_use(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolUse | None:
    """Checks the three fields together; None where no tool can be called.

    With `tool_choice: "none"` the model is not told of tools at all. A named tool is called once.

    Raises:
        InvalidRequestError: a name twice, a schema that is none of an object, a choice that names no tool.
    """
    _check_definitions(tools or ())
    if choice == "none" or (not tools and choice in (None, "auto")):
        return None
    if not tools:
        raise InvalidRequestError("'tool_choice' needs 'tools'", param="tool_choice")
    known = {tool.function.name: tool for tool in tools}
    may_repeat = parallel is not False
    if isinstance(choice, NamedTool):
        named = _pick(known, choice, "tool_choice.function.name")
        return ToolUse(tuple(tools), (named,), is_forced=True, is_parallel=False)
    if isinstance(choice, AllowedToolsChoice):
        where = "tool_choice.allowed_tools.tools"
        picked = {
            entry.function.name: _pick(known, entry, f"{where}[{index}].function.name")
            for index, entry in enumerate(choice.allowed_tools.tools)
        }
        is_forced = choice.allowed_tools.mode == "required"
        return ToolUse(tuple(tools), tuple(picked.values()), is_forced=is_forced, is_parallel=may_repeat)
    return ToolUse(tuple(tools), tuple(tools), is_forced=choice == "required", is_parallel=may_repeat)


def _pick(known: dict[str, Tool], choice: NamedTool, param: str) -> Tool:
    name = choice.function.name
    if name not in known:
        raise InvalidRequestError(f"there is no function {name!r} among the tools", param=param)
    return known[name]


def _check_definitions(tools: Sequence[Tool]) -> None:
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function"
        name, schema = tool.function.name, tool.function.parameters
        if name in seen:
            raise InvalidRequestError(f"there are two functions {name!r}", param=f"{where}.name")
        seen.add(name)
        if schema is None:
            continue
        if schema.get("type", "object") != "object":
            param = f"{where}.parameters.type"
            raise InvalidRequestError(f"arguments are an object, so {param!r} must be 'object'", param=param)
        if is_deeper(schema, MAX_DEPTH):
            param = f"{where}.parameters"
            raise InvalidRequestError(f"{param!r} is nested deeper than {MAX_DEPTH} levels", param=param)


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an assistant called."""

    name: ToolName
    arguments: str
    """JSON of an object."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call in a conversation's history."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
    """Clients that put streams together send it back; the order of calls says the same."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, decoded.

        Raises:
            InvalidRequestError: they are not a JSON object, or nested too deep; `param` is the last part of
                the field's path.
        """
        try:
            value = msgspec.json.decode(self.function.arguments.encode())
        except (*NOT_JSON, UnicodeEncodeError) as error:
            raise InvalidRequestError(f"not valid JSON: {error}", param="function.arguments") from error
        if not isinstance(value, dict):
            raise InvalidRequestError("not a JSON object", param="function.arguments")
        if is_deeper(value, MAX_DEPTH):
            raise InvalidRequestError(f"nested deeper than {MAX_DEPTH} levels", param="function.arguments")
        return value


class HistoryMessage(Protocol):
    """The part of a message that concerns tools."""

    @property
    def role(self) -> str:
        """Whose turn it is."""
        ...

    @property
    def tool_calls(self) -> Sequence[ToolCall] | None:
        """What the assistant called."""
        ...

    @property
    def tool_call_id(self) -> str | None:
        """The call whose result this is."""
        ...


def check_history(messages: Sequence[HistoryMessage]) -> None:
    """Checks that calls are well-formed and that each result answers an earlier call, once.

    Raises:
        InvalidRequestError: `param` is the path of the field at fault.
    """
    unanswered: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.tool_calls:
            if message.role != "assistant":
                param = f"{where}.tool_calls"
                raise InvalidRequestError(f"only an assistant has {param!r}", param=param)
            unanswered |= _check_calls(message.tool_calls, f"{where}.tool_calls")
        if message.role == "tool":
            _check_result(message.tool_call_id, unanswered, f"{where}.tool_call_id")
        elif message.tool_call_id is not None:
            param = f"{where}.tool_call_id"
            raise InvalidRequestError(f"{param!r} is for messages of the role 'tool'", param=param)


def _check_calls(calls: Sequence[ToolCall], where: str) -> set[str]:
    ids: set[str] = set()
    for index, call in enumerate(calls):
        if call.id in ids:
            raise InvalidRequestError(
                f"two calls have the id {shown(call.id)!r}", param=f"{where}[{index}].id"
            )
        ids.add(call.id)
        try:
            _ = call.arguments
        except InvalidRequestError as error:
            param = f"{where}[{index}].{error.param}"
            raise InvalidRequestError(
                f"{param!r} must be a string with the JSON of an object: {error.message}", param=param
            ) from error
    return ids


def _check_result(call_id: str | None, unanswered: set[str], param: str) -> None:
    if call_id is None:
        raise InvalidRequestError(f"{param!r} is missing: it says which call this answers", param=param)
    if call_id not in unanswered:
        raise InvalidRequestError(
            f"{param!r} is {shown(call_id)!r}, which no call before has, or only one that is answered",
            param=param,
        )
    unanswered.discard(call_id)


def is_deeper(value: Any, limit: int) -> bool:
    """True if lists and objects are nested in more than `limit` levels."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(value, dict | list) for value in level)


class AnswerFunction(msgspec.Struct, frozen=True, kw_only=True):
    """What the model called."""

    name: str
    arguments: str
    """JSON as the model wrote it: of an object, unless the answer was cut short."""


class AnswerToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call in a whole answer."""

    id: str
    type: Literal["function"] = "function"
    function: AnswerFunction


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to a call's function."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to a call: first id, type and name, then pieces of the arguments."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta

    @staticmethod
    def opening(index: int, call_id: str, name: str) -> ToolCallDelta:
        """The first delta of a call."""
        return ToolCallDelta(
            index=index, id=call_id, type="function", function=FunctionDelta(name=name, arguments="")
        )

    @staticmethod
    def more(index: int, arguments: str) -> ToolCallDelta:
        """The next piece of its arguments."""
        return ToolCallDelta(index=index, function=FunctionDelta(arguments=arguments))
