"""Calls as Llama 3 writes them: the answer is a JSON object, or several separated by semicolons.

Format: Llama 3.1's prompt format for JSON based tool calling. `<|python_tag|>` before an object marks it as a
call anywhere; without it an object is one only where the answer begins or a call has ended. After an object
that is no call, text follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.protocol.tools import Tool
from penstock.text.fragments import OutputParser
from penstock.text.incremental import Script
from penstock.text.tools.call_parser import CallParser
from penstock.text.tools.json_value import SPACE
from penstock.text.tools.tool_format import ToolFormat, lark_calls, lark_grammar, lark_object

TAG = "<|python_tag|>"
_SEPARATORS = re.compile(r"[ \t\n\r;]*")


class Llama3JsonFormat(ToolFormat):
    """See the module."""

    name = "llama3_json"
    marks = (TAG,)

    def parser(self, tools: Sequence[Tool], *, parallel: bool = True) -> OutputParser:
        """See ToolFormat."""
        return _Llama3JsonParser([tool.function.name for tool in tools], self.call_id, parallel=parallel)

    def grammar(self, tools: Sequence[Tool], *, parallel: bool = True, opening: str | None = None) -> str:
        """See ToolFormat."""
        rules = lark_calls(tools, lark_object("parameters"))
        return lark_grammar('call ("; " call)*' if parallel else "call", opening, rules)


class _Llama3JsonParser(CallParser):
    def _script(self) -> Script[None]:
        yield from self._skip_layout()
        may_be_bare = True
        while True:
            if not (may_be_bare and (yield from self._next()) == "{"):
                if not (yield from self._find(TAG)):
                    return
                yield from self._run(SPACE)
            may_be_bare = yield from self._object()
            if self.is_complete:
                return
            if may_be_bare:
                yield from self._skip_layout(_SEPARATORS)
            else:
                yield from self._break_off()
