"""A conversation to a prompt, by the checkpoint's own chat template.

The template gets messages, tools and calls in OpenAI's form, arguments as objects. What it does not read is
refused, not left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.base.errors import InvalidRequestError
from penstock.protocol.strict import shown
from penstock.protocol.tools import MAX_DEPTH, Tool, ToolCall, is_deeper
from penstock.text.sandbox import SandboxedTemplate
from penstock.text.tokenizer import CLOSE_MARK, OPEN_MARK, Tokenizer, token_text

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt", *_SPECIAL_TOKENS})
_NO_PARAMETERS = {"type": "object", "properties": {}}
_ESCAPED = re.compile(r"\\ufdd0([0-9]{1,9})\\ufdd1")
_KWARGS = "chat_template_kwargs"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, its role as the template knows it."""

    role: str
    content: str
    tool_calls: Sequence[ToolCall] = ()
    """What the assistant called, checked by `protocol.tools.check_history`."""
    tool_call_id: str | None = None
    """The call whose result this is."""
    reasoning: str | None = None
    """What the assistant thought; templates know it as `reasoning_content`."""


class ChatTemplate:
    """A checkpoint's chat template, or its two: one may be for conversations with tools."""

    def __init__(self, source: str, tokenizer: Tokenizer, *, tool_source: str | None = None) -> None:
        """Raises CheckpointError if a template does not compile."""
        self.tool_source = source if tool_source is None else tool_source
        """The template that tools are shown by; it tells how the model writes calls and reasoning."""
        self._template = SandboxedTemplate(source)
        self._with_tools = self._template if tool_source is None else SandboxedTemplate(tool_source)
        self._tokenizer = tokenizer
        self._special = {
            name: text for name in _SPECIAL_TOKENS if (text := token_text(tokenizer.config.get(name)))
        }

    @staticmethod
    def of_checkpoint(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The templates in files of their own or else in tokenizer_config.json; None if there are none."""
        source = _read(directory / "chat_template.jinja")
        tool_source = _read(directory / "additional_chat_templates" / "tool_use.jinja")
        if source is None:
            source = tokenizer.config.get("chat_template")
            if isinstance(source, list):  # several named templates
                named = {entry.get("name"): entry.get("template") for entry in source}
                source, tool_source = named.get("default"), named.get("tool_use")
        return ChatTemplate(source, tokenizer, tool_source=tool_source) if isinstance(source, str) else None

    def encode(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of the conversation up to where the assistant's next turn begins.

        Without `add_generation_prompt` they end with the last message.

        Special tokens inside what a client wrote (content, names, arguments, schemas, variables) are encoded
        as text. `variables` are the template's own, `enable_thinking` say, with values of JSON's types.

        Raises:
            InvalidRequestError: the template refuses the conversation, with its own words, or does not read
                tools, calls or a variable that are there.
        """
        has_calls = any(turn.tool_calls for turn in turns)
        template = self._with_tools if tools or has_calls else self._template
        _check_variables(template, variables or {})
        defused: list[str] = []
        given = {
            **self._defuse(dict(variables or {}), defused),
            "messages": self._defuse(_messages(turns), defused),
            "tools": self._defuse([_definition(tool) for tool in tools], defused) or None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._render(template, given)
        if tools and self._is_same(text, template, given | {"tools": None}):
            raise InvalidRequestError("the model's chat template does not know tools", param="tools")
        if has_calls:
            without = [{**message, "tool_calls": None} for message in given["messages"]]
            if self._is_same(text, template, given | {"messages": without}):
                first = next(index for index, turn in enumerate(turns) if turn.tool_calls)
                param = f"messages[{first}].tool_calls"
                raise InvalidRequestError("the model's chat template does not know tool calls", param=param)
        return self._tokenizer.encode_prompt(_unescaped(text, len(defused)), defused)

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt as text, with the assistant's next turn opened."""
        given = {"messages": list(messages), "tools": None, "add_generation_prompt": True}
        return self._render(self._template, given)

    def _render(self, template: SandboxedTemplate, given: Mapping[str, Any]) -> str:
        return template.render({**given, **self._special, "documents": None})

    def _is_same(self, text: str, template: SandboxedTemplate, given: Mapping[str, Any]) -> bool:
        """True if the prompt is this text also with less given to the template."""
        try:
            return self._render(template, given) == text
        except InvalidRequestError:
            return False

    def _defuse(self, value: Any, defused: list[str]) -> Any:
        """The same with no special token in any text, keys included."""
        if isinstance(value, str):
            return self._tokenizer.defuse(value, defused)
        if isinstance(value, dict):
            return {self._defuse(k, defused): self._defuse(v, defused) for k, v in value.items()}
        if isinstance(value, list):
            return [self._defuse(item, defused) for item in value]
        return value


def _check_variables(template: SandboxedTemplate, variables: Mapping[str, Any]) -> None:
    known = template.variables - _OURS
    for name, value in variables.items():
        param = f"{_KWARGS}.{shown(name)}"
        if name not in known:
            raise InvalidRequestError(
                f"the model's chat template has no variable {shown(name)!r} to set; it has: "
                + (", ".join(sorted(known)) or "none"),
                param=param,
            )
        if is_deeper(value, MAX_DEPTH):
            raise InvalidRequestError(f"{param!r} is nested deeper than {MAX_DEPTH} levels", param=param)


def _unescaped(text: str, count: int) -> str:
    """The prompt with the marks that `tojson` and the printing of lists have escaped as marks again.

    Who writes such an escape as text gets, at worst, a special token's text.
    """
    return _ESCAPED.sub(
        lambda found: f"{OPEN_MARK}{found[1]}{CLOSE_MARK}" if int(found[1]) < count else found[0], text
    )


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """In the form that Hugging Face's templates take; a tool's result has the name of its tool."""
    names: dict[str, str] = {}
    messages: list[dict[str, Any]] = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.reasoning is not None:
            message["reasoning_content"] = turn.reasoning
        if turn.tool_calls:
            message["tool_calls"] = [_call(call) for call in turn.tool_calls]
            names.update((call.id, call.function.name) for call in turn.tool_calls)
        if turn.tool_call_id is not None:
            message["tool_call_id"] = turn.tool_call_id
            if turn.tool_call_id in names:
                message["name"] = names[turn.tool_call_id]
        messages.append(message)
    return messages


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _definition(tool: Tool) -> dict[str, Any]:
    """What the model is shown of a tool; templates count on a description and on parameters."""
    parameters = tool.function.parameters
    return {
        "type": "function",
        "function": {
            "name": tool.function.name,
            "description": tool.function.description or "",
            "parameters": _NO_PARAMETERS if parameters is None else parameters,
        },
    }


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
