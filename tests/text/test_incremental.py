"""A script reads the same whatever pieces its text comes in."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from penstock.text.fragments import Content, Reasoning, merged
from penstock.text.incremental import IncrementalParser, Script
from tool_answers import cut

WORDS = ("<ab>", "<ac>", "<b")


class Marker(IncrementalParser):
    """Content, but for certain words with the digits behind them, which it gives out as reasoning."""

    def _script(self) -> Script[None]:
        while (yield from self._next()):
            if (yield from self._word(*WORDS)) is None:
                self._release()
            else:
                yield from self._run(re.compile("[0-9]*"))
                self._out.append(Reasoning(self._drop()))
            yield from self._until("<")

    def _give(self, text: str) -> None:
        self._out.append(Content(text))


def reference(text: str) -> list[Content | Reasoning]:
    """The same over the whole text."""
    parts = re.split("((?:<ab>|<ac>|<b)[0-9]*)", text)
    found = [Reasoning(part) if index % 2 else Content(part) for index, part in enumerate(parts)]
    return [fragment for fragment in found if fragment.text]


@given(
    st.lists(st.sampled_from(["<", "a", "b", "c", ">", "1", "23", *WORDS])).map("".join),
    st.lists(st.integers(0, 40)),
)
def test_how_the_text_is_cut_changes_nothing(text: str, places: list[int]) -> None:
    """Words that break off and begin again, runs over several pieces, empty pieces."""
    for pieces in ([text], list(text), cut(text, places)):
        parser = Marker()
        found = [fragment for piece in pieces for fragment in parser.push(piece)]
        assert merged([*found, *parser.flush()]) == merged(reference(text))


def test_what_cannot_be_a_word_any_more_is_given_at_once() -> None:
    """And what can is held, to the end of the text if need be."""
    parser = Marker()
    assert parser.push("x<a") == [Content("x")]
    assert parser.push("x<") == [Content("<ax")]
    assert parser.push("b1") == []
    assert parser.push("2 ") == [Reasoning("<b12"), Content(" ")]
    assert parser.push("<a") == []
    assert parser.flush() == [Content("<a")]
    assert parser.flush() == parser.push("more") == []
