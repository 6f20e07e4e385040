"""How one checkpoint writes its answers, and what reads one: reasoning first, then content and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from penstock.base.errors import InvalidRequestError
from penstock.protocol.tools import ToolUse
from penstock.text.detokenizer import Decodes
from penstock.text.fragments import OutputParser, PlainText
from penstock.text.reasoning import ReasoningParser, ReasoningTags, choose_reasoning
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
    new_parser: Callable[[], OutputParser] | None
    """Makes what takes one answer apart; None: all of it is content."""
    grammar: str | None
    """In llguidance's Lark, which holds the answer to a call that is forced; None: it is free."""
    spelled_grammar: str | None
    """The same with marks spelled out, for a trial over a vocabulary of bytes, which lacks their tokens."""
    reasoning: ReasoningTags | None = None
    """The tags that the answer may think between."""
    is_inside: bool = False
    """True if the prompt has opened them."""


class AnswerFormat:
    """Of one checkpoint. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template_source: str | None,
        tools: FormatName = "auto",
        *,
        splits_reasoning: bool = True,
    ) -> None:
        """`template_source`: see `ChatTemplate.tool_source`; None if there is no template."""
        self._tokenizer = tokenizer
        self._tools = tool_format(tools, template_source, tokenizer)
        self._reasoning = choose_reasoning(template_source) if splits_reasoning else None

    def read(self, prompt: Sequence[int], use: ToolUse | None) -> AnswerReading:
        """What reads the answer to a prompt of token ids.

        Raises:
            InvalidRequestError: tools are asked for and the format of their calls is not known.
        """
        tools, tags = self._tools_for(use), self._reasoning
        marks = {
            *(() if tools is None else tools.visible_tokens),
            *(() if tags is None else tags.visible_tokens),
        }
        if not marks:
            return AnswerReading(self._tokenizer, None, None, None)
        decoding = self._tokenizer.showing(marks)
        is_inside = tags is not None and tags.is_open(decoding.decode(prompt[-_NUM_LAST_TOKENS:]))

        def new_parser() -> OutputParser:
            parser: OutputParser = PlainText()
            if tools is not None and use is not None:
                parser = tools.parser(use.callable, parallel=use.is_parallel)
            return parser if tags is None else ReasoningParser(tags, parser, starts_inside=is_inside)

        grammar = spelled = None
        if tools is not None and use is not None and use.is_forced:
            grammar = self._grammar(tools, self._tokenizer.added_tokens, use, is_inside)
            spelled = self._grammar(type(tools)({}), {}, use, is_inside)
        return AnswerReading(decoding, new_parser, grammar, spelled, tags, is_inside)

    def _tools_for(self, use: ToolUse | None) -> ToolFormat | None:
        if use is not None and self._tools is None:
            raise InvalidRequestError(
                "tools cannot be used: the format of this model's calls is not known; the engine's setting "
                "tool_format says it",
                param="tools",
            )
        return None if use is None else self._tools

    def _grammar(self, form: ToolFormat, tokens: Mapping[str, int], use: ToolUse, is_inside: bool) -> str:
        """Of calls in this form, with what `tokens` has as tokens."""
        opening = None
        if self._reasoning is not None:
            opening = self._reasoning.lark(tokens, starts_inside=is_inside)
        return form.grammar(use.callable, parallel=use.is_parallel, opening=opening)
