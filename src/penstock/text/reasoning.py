"""What a model thinks between two tags before it answers, told apart from the answer.

Line ends at both ends of the reasoning and before the answer are layout, as in DeepSeek's and Qwen's
templates. An answer without the closing tag is reasoning to its end. Tags later in the answer are text; tool
calls in the reasoning are no calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.text.fragments import OutputParser, Reasoning
from penstock.text.incremental import IncrementalParser, Script
from penstock.text.lark import lark_word

_SPACE = re.compile(r"[ \t\n\r]*")
_LINE_ENDS = re.compile(r"[\n\r]*")


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The tags of a family of models. Their first character does not occur in them again."""

    opening: str
    closing: str

    @property
    def visible_tokens(self) -> frozenset[str]:
        """Special tokens that the parser must see as text, see `Tokenizer.showing`."""
        return frozenset({self.opening, self.closing})

    def is_open(self, prompt: str) -> bool:
        """True if a prompt, tags shown, ends in an opened tag: then the answer begins inside."""
        return prompt.rstrip().endswith(self.opening)

    def lark(self, tokens: Mapping[str, int], *, starts_inside: bool) -> str:
        """Rules of a grammar that admit reasoning in front of what it forces, the first of them `opening`.

        The reasoning may be left out unless the answer `starts_inside`. `tokens`: the tokenizer's added ones.
        """
        closing = re.escape(self.closing).replace("/", "\\/")
        if self.closing in tokens:
            rules = f"TEXT: /(?s:.*)/ & ~/(?s:.*){closing}(?s:.*)/"
            ending = f"TEXT {lark_word(self.closing, tokens)} /\\n{{0,2}}/"
        else:
            rules = f"text[lazy]: /(?s:.*){closing}/"
            ending = r"text /\n{0,2}/"
        if not starts_inside:
            ending = f"({lark_word(self.opening, tokens)} {ending})?"
        return f"opening: {ending}\n{rules}"


THINK = ReasoningTags("<think>", "</think>")
"""DeepSeek's, Qwen's and most others'."""


def choose_reasoning(template_source: str | None) -> ReasoningTags | None:
    """The tags that the chat template writes or takes out; None for a model that does not reason."""
    return THINK if template_source is not None and THINK.closing in template_source else None


class ReasoningParser(IncrementalParser):
    """An OutputParser that splits off reasoning and leaves the answer to another one."""

    def __init__(self, tags: ReasoningTags, answer: OutputParser, *, starts_inside: bool) -> None:
        """`starts_inside`: the prompt has opened the reasoning, see `ReasoningTags.is_open`."""
        super().__init__()
        self._tags = tags
        self._answer = answer
        self._starts_inside = starts_inside
        self._has_thought = False
        self._plain = re.compile(f"[^\\n\\r{re.escape(tags.closing[0])}]*")

    @property
    def has_calls(self) -> bool:
        """See OutputParser."""
        return self._answer.has_calls

    @property
    def is_complete(self) -> bool:
        """See OutputParser."""
        return self._answer.is_complete

    def _script(self) -> Script[None]:
        yield from self._run(_SPACE)
        tag = yield from self._word(self._tags.opening, self._tags.closing)
        if tag == self._tags.opening or self._starts_inside:
            if tag is not None:
                self._drop()
            if tag != self._tags.closing:
                yield from self._reason()
            yield from self._run(_LINE_ENDS)
            self._drop()
        self._release()
        yield from self._rest()
        self._out += self._answer.flush()

    def _reason(self) -> Script[None]:
        """Reads up to the closing tag, or to the end."""
        while True:
            if "".join(self._held).strip():
                self._think()  # more than layout, and no part of the tag that may follow
            yield from self._run(_LINE_ENDS)
            if (yield from self._word(self._tags.closing)) is not None:
                self._drop()
                return
            if found := self._plain.match(self._text, self._at):
                self._hold(found.end())
            self._think()
            if not (yield from self._next()):
                return

    def _think(self) -> None:
        """Gives out what is held as reasoning; line ends alone are held only where the text is over."""
        text = self._drop()
        if text.strip("\r\n"):
            self._out.append(Reasoning(text if self._has_thought else text.lstrip("\r\n")))
            self._has_thought = True

    def _give(self, text: str) -> None:
        self._out += self._answer.push(text)
