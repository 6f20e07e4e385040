"""How one checkpoint writes its answers, and what reads one: reasoning first, then content and calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.base.errors import InvalidRequestError
from penstock.protocol.tools import ToolUse
from penstock.text.detokenizer import Decodes
from penstock.text.fragments import OutputParser, PlainText
from penstock.text.reasoning import ReasoningParser, choose_reasoning
from penstock.text.tokenizer import Tokenizer
from penstock.text.tools.choice import FormatName, tool_format

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
        opening = None
        if self._reasoning is not None:
            marks |= self._reasoning.visible_tokens
            prompt_end = self._tokenizer.showing(marks).decode(prompt[-_NUM_LAST_TOKENS:])
            is_inside = self._reasoning.is_open(prompt_end)
            parser = ReasoningParser(self._reasoning, parser, starts_inside=is_inside)
            opening = self._reasoning.lark(self._tokenizer.added_tokens, starts_inside=is_inside)
        grammar = None
        if use is not None and use.is_forced and self._tools is not None:
            grammar = self._tools.grammar(use.callable, parallel=use.is_parallel, opening=opening)
        decoding = self._tokenizer.showing(marks) if marks else self._tokenizer
        return AnswerReading(decoding, parser, grammar)
