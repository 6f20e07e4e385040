"""How one checkpoint writes its answers, and what reads one: reasoning first, then content and calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.base.errors import InvalidRequestError
from penstock.protocol.tools import ToolUse
from penstock.text.detokenizer import Decodes
from penstock.text.fragments import OutputParser, PlainText
from penstock.text.reasoning import ReasoningParser, choose_reasoning
from penstock.text.tokenizer import Tokenizer
from penstock.text.tools.choice import FormatName, tool_format
from penstock.text.tools.tool_format import ToolFormat

# Tokens at a prompt's end that are looked at for an opened tag, which may be spelled letter by letter.
_NUM_LAST_TOKENS = 32


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """What reads one answer."""

    decoding: Decodes
    """For the detokenizer; it shows the special tokens that the parser looks for."""
    parser: OutputParser
    grammar: str | None
    """In llguidance's Lark, which holds the answer to a call that is forced; None: it is free."""
    spelled_grammar: str | None
    """The same with marks spelled out, for a trial over a vocabulary of bytes, which lacks their tokens."""


class AnswerFormat:
    """Of one checkpoint. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, template_source: str | None, tools: FormatName = "auto") -> None:
        """`template_source`: see `ChatTemplate.tool_source`; None if there is no template."""
        self._tokenizer = tokenizer
        self._tools = tool_format(tools, template_source, tokenizer)
        self._reasoning = choose_reasoning(template_source)

    def read(self, prompt: Sequence[int], use: ToolUse | None) -> AnswerReading:
        """What reads the answer to a prompt of token ids.

        Raises:
            InvalidRequestError: tools are asked for and the format of their calls is not known.
        """
        marks: set[str] = set()
        parser: OutputParser = PlainText()
        if use is not None:
            if self._tools is None:
                raise InvalidRequestError(
                    "tools cannot be used: the format of this model's calls is not known (--tool-format)",
                    param="tools",
                )
            marks |= self._tools.visible_tokens
            parser = self._tools.parser(use.callable, parallel=use.is_parallel)
        is_inside = False
        if self._reasoning is not None:
            marks |= self._reasoning.visible_tokens
            prompt_end = self._tokenizer.showing(marks).decode(prompt[-_NUM_LAST_TOKENS:])
            is_inside = self._reasoning.is_open(prompt_end)
            parser = ReasoningParser(self._reasoning, parser, starts_inside=is_inside)
        decoding = self._tokenizer.showing(marks) if marks else self._tokenizer
        if use is None or not use.is_forced or self._tools is None:
            return AnswerReading(decoding, parser, None, None)
        return AnswerReading(
            decoding,
            parser,
            self._grammar(self._tools, self._tokenizer.added_tokens, use, is_inside),
            self._grammar(type(self._tools)({}), {}, use, is_inside),
        )

    def _grammar(self, form: ToolFormat, tokens: Mapping[str, int], use: ToolUse, is_inside: bool) -> str:
        """Of calls in this form, with what `tokens` has as tokens."""
        opening = None
        if self._reasoning is not None:
            opening = self._reasoning.lark(tokens, starts_inside=is_inside)
        return form.grammar(use.callable, parallel=use.is_parallel, opening=opening)
