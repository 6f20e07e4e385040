"""Calls as Mistral's models write them, after the token `[TOOL_CALLS]`.

Format: mistral-common. Up to its version 7 a JSON list of objects follows, `[{"name": ..., "arguments":
{...}}]`; later versions write each call as `[TOOL_CALLS]name[ARGS]{...}`, for a time with `[CALL_ID]...`
after the name. The parser reads both; the grammar asks for the later one if the tokenizer has `[ARGS]`.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Sequence

from penstock.protocol.tools import Tool
from penstock.text.fragments import OutputParser
from penstock.text.incremental import Script
from penstock.text.lark import lark_text
from penstock.text.tools.call_parser import CallParser
from penstock.text.tools.json_value import SPACE
from penstock.text.tools.tool_format import ToolFormat, lark_calls, lark_grammar, lark_object

CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
ID_LENGTH = 9
"""Mistral's templates refuse any other, in letters and digits."""
_NAME = re.compile(r"[A-Za-z0-9_-]*")


class MistralFormat(ToolFormat):
    """See the module."""

    name = "mistral"
    marks = (CALLS, ARGS, CALL_ID)

    @staticmethod
    def call_id() -> str:
        """See ID_LENGTH."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_LENGTH))

    def parser(self, tools: Sequence[Tool], *, parallel: bool = True) -> OutputParser:
        """See ToolFormat."""
        return _MistralParser([tool.function.name for tool in tools], self.call_id, parallel=parallel)

    def grammar(self, tools: Sequence[Tool], *, parallel: bool = True, opening: str | None = None) -> str:
        """See ToolFormat."""
        if ARGS in self._tokens:
            rules = lark_calls(
                tools, lambda name, arguments: f"{lark_text(name)} {self._mark(ARGS)} {arguments}"
            )
            block = f"block: {self._mark(CALLS)} call"
            return lark_grammar("block+" if parallel else "block", opening, [block, *rules])
        calls = 'call (", " call)*' if parallel else "call"
        rules = lark_calls(tools, lark_object("arguments"))
        return lark_grammar(f'{self._mark(CALLS)} " [" {calls} "]"', opening, rules)


class _MistralParser(CallParser):
    def _script(self) -> Script[None]:
        yield from self._skip_layout()
        while (yield from self._find(CALLS)):
            yield from self._run(SPACE)
            is_list = (yield from self._next()) == "["
            is_whole = yield from self._list() if is_list else self._named()
            if self.is_complete:
                return
            if is_whole:
                self._drop()
                yield from self._skip_layout()
            else:
                yield from self._break_off()

    def _list(self) -> Script[bool]:
        """Reads a list of call objects; True if all are whole, or the one that is wanted."""
        sign = yield from self._word("[")
        while sign in ("[", ","):
            yield from self._run(SPACE)
            if not (yield from self._object()):
                return False
            if self.is_complete:
                return True
            yield from self._run(SPACE)
            sign = yield from self._word(",", "]")
        return sign is not None

    def _named(self) -> Script[bool]:
        """Reads a name and its arguments."""
        self._name = yield from self._run(_NAME)
        self._early = None
        if not self._may_call(self._name):
            return False
        if (yield from self._next()) == "[":
            mark = yield from self._word(ARGS, CALL_ID)
            if mark == CALL_ID:
                yield from self._run(_NAME)
                mark = yield from self._word(ARGS)
            if mark is None:
                return False
        yield from self._run(SPACE)
        if not (yield from self._arguments()):
            return False
        self._end()
        return True
