"""Which format of tool calls a checkpoint has."""

from __future__ import annotations

from typing import Literal

from penstock.text.tokenizer import Tokenizer
from penstock.text.tools.hermes import HermesFormat
from penstock.text.tools.llama3_json import Llama3JsonFormat
from penstock.text.tools.mistral import MistralFormat
from penstock.text.tools.tool_format import ToolFormat

FormatName = Literal["auto", "none", "hermes", "llama3_json", "mistral"]

_FORMATS: dict[str, type[ToolFormat]] = {
    kind.name: kind for kind in (HermesFormat, Llama3JsonFormat, MistralFormat)
}
# Words that the chat templates of a format have, all of them.
_TELL_TALES = (
    (("[TOOL_CALLS]",), MistralFormat),
    (("<tool_call>",), HermesFormat),
    (("<|python_tag|>",), Llama3JsonFormat),
    (("<|start_header_id|>", '"parameters": '), Llama3JsonFormat),
)
# Of templates that write calls in XML, some of them between the same marks as Hermes.
_OTHERS = ("<function=", "<arg_key>")


def choose_tool_format(template_source: str | None, tokenizer: Tokenizer) -> ToolFormat | None:
    """The format that the chat template writes earlier calls in; None for one that writes none of ours."""
    if template_source is None or any(word in template_source for word in _OTHERS):
        return None
    for words, kind in _TELL_TALES:
        if all(word in template_source for word in words):
            return kind(tokenizer.added_tokens)
    return None


def tool_format(name: FormatName, template_source: str | None, tokenizer: Tokenizer) -> ToolFormat | None:
    """The format of this name; `auto` asks the template, `none` is no format."""
    if name == "auto":
        return choose_tool_format(template_source, tokenizer)
    return None if name == "none" else _FORMATS[name](tokenizer.added_tokens)
