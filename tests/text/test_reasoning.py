"""Reasoning and answer are told apart, however the text is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.text.fragments import Content, Fragment, PlainText, Reasoning
from penstock.text.reasoning import THINK, ReasoningParser, ReasoningTags, choose_reasoning
from penstock.text.tools.hermes import HermesFormat
from tool_answers import TOOLS, call, content, cut, parse

CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
WORDS = [
    "<think>",
    "</think>",
    "<",
    "</",
    "</thi",
    "think>",
    "\n",
    "\n\n",
    "\r\n",
    " ",
    "a",
    "b c",
    CALL,
    "é",
]
ANSWERS = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
PLACES = st.lists(st.integers(0, 60), max_size=12)


def reasoner(*, starts_inside: bool, tags: ReasoningTags = THINK) -> ReasoningParser:
    """In front of answers without tools."""
    return ReasoningParser(tags, PlainText(), starts_inside=starts_inside)


def reference(text: str, starts_inside: bool) -> list[Fragment]:
    """The definition, over the whole text."""
    opened = re.match(r"[ \t\n\r]*<think>", text)
    if not opened and not starts_inside:
        return [Content(text)] if text else []
    inside = text[opened.end() :] if opened else text
    if not opened and re.match(r"[ \t\n\r]*</think>", text):
        inside = text.lstrip(" \t\n\r")
    thoughts, _, answer = inside.partition("</think>")
    found = [Reasoning(thoughts.strip("\r\n")), Content(answer.lstrip("\r\n"))]
    return [fragment for fragment in found if fragment.text]


@pytest.mark.parametrize("starts_inside", [False, True])
@given(text=ANSWERS | st.text(), places=PLACES)
def test_any_answer_in_any_pieces_is_split_by_the_definition(
    starts_inside: bool, text: str, places: list[int]
) -> None:
    """Tags missing, twice, broken off, in other places."""
    expected = reference(text, starts_inside)
    for pieces in ([text], list(text), cut(text, places)):
        assert parse(reasoner(starts_inside=starts_inside), *pieces) == expected


@given(text=ANSWERS, places=PLACES)
def test_calls_are_found_behind_the_reasoning_and_not_in_it(text: str, places: list[int]) -> None:
    """The answer is parsed as it would be alone."""
    thoughts = text.replace(">", "")
    parser = ReasoningParser(THINK, HermesFormat({}).parser(TOOLS), starts_inside=True)
    found = parse(parser, *cut(f"<think>{thoughts}</think>\n\n{CALL}", places))
    stripped = thoughts.strip("\r\n")
    assert found == [*([Reasoning(stripped)] if stripped else []), *call(0, "f", "{}")]


def test_reasoning_streams_but_for_what_may_be_layout_or_a_tag() -> None:
    """Line ends wait for more text, so does the beginning of a tag."""
    parser = reasoner(starts_inside=True)
    assert parser.push("\n\nI th") == [Reasoning("I th")]
    assert parser.push("ink\n") == [Reasoning("ink")]
    assert parser.push("so </th") == [Reasoning("\nso ")]
    assert parser.push("e") == [Reasoning("</the")]
    assert parser.push("\n</think") == []
    assert parser.push(">\n") == []
    assert parser.push("\nyes") == [Content("yes")]
    assert parser.push("</think>") == [Content("</think>")]


def test_after_the_only_call_the_answer_is_complete() -> None:
    """What follows is dropped, as by the parser behind."""
    parser = ReasoningParser(THINK, HermesFormat({}).parser(TOOLS, parallel=False), starts_inside=False)
    assert parser.push("<think>x</think>") == [Reasoning("x")]
    assert not parser.is_complete
    assert parse(parser, CALL + "more") == call(0, "f", "{}")
    assert parser.is_complete


def test_other_tags_are_read_alike() -> None:
    """Mistral's."""
    tags = ReasoningTags("[THINK]", "[/THINK]")
    assert parse(reasoner(starts_inside=False, tags=tags), *"[THINK]a[b[/THINK]c") == [
        Reasoning("a[b"),
        Content("c"),
    ]
    assert tags.visible_tokens == {"[THINK]", "[/THINK]"}


@pytest.mark.parametrize("word", ["<", "\n", "a\n", "</think"])
def test_long_reasoning_is_read_in_one_go_and_letter_by_letter(word: str) -> None:
    """Work that grew with the square of the length would not end here."""
    text = "x" + word * (40_000 // len(word)) + "x"
    for pieces in ([text], list(text)):
        assert parse(reasoner(starts_inside=True), *pieces) == [Reasoning(text)]


def test_prompts_and_templates_tell_whether_a_model_reasons() -> None:
    """By the end of a prompt, and by the tag that templates cut earlier reasoning at."""
    assert THINK.is_open("<|im_start|>assistant\n<think>\n")
    assert not THINK.is_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not THINK.is_open("assistant\n")
    assert choose_reasoning("{{ content.split('</think>')[-1] }}") == THINK
    assert choose_reasoning("{{ content }}") is None
    assert choose_reasoning(None) is None
    assert content(parse(PlainText(), "a", "", "b")) == "ab"
