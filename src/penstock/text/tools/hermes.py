"""Calls as Hermes and Qwen write them: a JSON object between `<tool_call>` and `</tool_call>`, one for each
call.

Format: Hermes function calling (Nous Research), and the chat templates of Qwen2.5 and Qwen3. White space is
free; a closing mark that is missing before the next opening one is not missed.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.protocol.tools import Tool
from penstock.text.fragments import OutputParser
from penstock.text.incremental import Script
from penstock.text.tools.call_parser import CallParser
from penstock.text.tools.json_value import SPACE
from penstock.text.tools.tool_format import ToolFormat, lark_calls, lark_grammar, lark_object

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesFormat(ToolFormat):
    """See the module."""

    name = "hermes"
    marks = (OPEN, CLOSE)

    def parser(self, tools: Sequence[Tool], *, parallel: bool = True) -> OutputParser:
        """See ToolFormat."""
        return _HermesParser([tool.function.name for tool in tools], self.call_id, parallel=parallel)

    def grammar(self, tools: Sequence[Tool], *, parallel: bool = True, opening: str | None = None) -> str:
        """See ToolFormat."""
        block = f'block: {self._mark(OPEN)} "\\n" call "\\n" {self._mark(CLOSE)}'
        rules = lark_calls(tools, lark_object("arguments"))
        return lark_grammar('block ("\\n" block)*' if parallel else "block", opening, [block, *rules])


class _HermesParser(CallParser):
    def _script(self) -> Script[None]:
        mark: str | None = None
        while True:
            if mark != OPEN:
                yield from self._skip_layout()
                if not (yield from self._find(OPEN)):
                    return
            mark = None
            self._has_begun = False
            yield from self._run(SPACE)
            is_whole = yield from self._object()
            if self.is_complete:
                return
            if is_whole:
                yield from self._run(SPACE)
                mark = yield from self._word(OPEN, CLOSE)
            if mark == CLOSE:
                self._drop()
            elif mark is None:
                yield from self._break_off()
