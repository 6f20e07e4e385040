"""The contract of a format of tool calls, and what their grammars have in common.

A grammar is in llguidance's variant of Lark. It admits answers that are calls and nothing else (after
reasoning, where the model reasons), each written as chat templates write it, with arguments that validate
against the tool's JSON schema.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from penstock.base.ids import new_id
from penstock.protocol.tools import Tool
from penstock.text.fragments import OutputParser
from penstock.text.lark import lark_text, lark_word

# One way to lay out JSON, json.dumps's: what chat templates show, and no endless white space.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ToolFormat(ABC):
    """How a family of models writes tool calls."""

    name: ClassVar[str]
    marks: ClassVar[tuple[str, ...]]
    """Words that mark calls; a tokenizer may have a token for each or spell it out."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        """`tokens` are the ids of the tokenizer's added tokens, see `Tokenizer.added_tokens`."""
        self._tokens = tokens

    @property
    def visible_tokens(self) -> frozenset[str]:
        """Special tokens that the parser must see as text, see `Tokenizer.showing`."""
        return frozenset(self.marks)

    @abstractmethod
    def parser(self, tools: Sequence[Tool], *, parallel: bool = True) -> OutputParser:
        """A parser of an answer that may call `tools`; it ends with its first call unless `parallel`."""

    @abstractmethod
    def grammar(self, tools: Sequence[Tool], *, parallel: bool = True, opening: str | None = None) -> str:
        """A Lark grammar of the answers that call at least one of `tools`, exactly one unless `parallel`.

        `opening` are rules, the first of that name, for what comes before the calls; see
        `ReasoningTags.lark`.
        """

    def _mark(self, text: str) -> str:
        """A mark in Lark: its token, or else its letters."""
        return lark_word(text, self._tokens)

    @staticmethod
    def call_id() -> str:
        """The id of a call."""
        return new_id("call")


def lark_grammar(calls: str, opening: str | None, rules: Sequence[str]) -> str:
    """A whole grammar of the right side of the rule `calls`, `opening` (see ToolFormat), other rules."""
    start = "start: calls" if opening is None else f"start: opening calls\n{opening}"
    return "\n".join([start, f"calls: {calls}", *rules, ""])


def lark_calls(tools: Sequence[Tool], write: Callable[[str, str], str]) -> list[str]:
    """Rules for one call: `call`, one of the tools.

    `write` makes the right side of a tool's rule of its name and of the name of the rule for its arguments.
    """
    rules = ["call: " + " | ".join(f"call_{index}" for index in range(len(tools)))]
    for index, tool in enumerate(tools):
        rules.append(f"call_{index}: {write(tool.function.name, f'arguments_{index}')}")
        rules.append(f"arguments_{index}: %json {json.dumps(_arguments(tool))}")
    return rules


def lark_object(key: str) -> Callable[[str, str], str]:
    """Calls as JSON objects with the arguments under `key`, for `lark_calls`."""

    def write(name: str, arguments: str) -> str:
        opening = lark_text(f'{{"name": "{name}", "{key}": ')
        return f'{opening} {arguments} "}}"'

    return write


def _arguments(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments: an object, whatever else it says."""
    return {**(tool.function.parameters or {}), "type": "object", "x-guidance": _LAYOUT}
