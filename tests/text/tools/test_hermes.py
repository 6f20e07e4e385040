"""Calls as Hermes and Qwen write them."""

from __future__ import annotations

import pytest

from penstock.text.fragments import Content, Fragment
from penstock.text.tools.hermes import HermesFormat
from tool_answers import TOOLS, call, parse

F = '<tool_call>\n{"name": "f", "arguments": {"a": "}</tool_call>"}}\n</tool_call>'
F_CALL = '{"a": "}</tool_call>"}'
GET = '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (F, call(0, "f", F_CALL)),
        (f"{F}\n{GET}", [*call(0, "f", F_CALL), *call(1, "get", "{}")]),
        (f"\n\n{F}\n\n{GET} \n", [*call(0, "f", F_CALL), *call(1, "get", "{}")]),
        (f"Let me see.\n{GET}", [Content("Let me see.\n"), *call(0, "get", "{}")]),
        (f"{GET}\nDone.", [*call(0, "get", "{}"), Content("\nDone.")]),
        (f"{GET} and {GET}", [*call(0, "get", "{}"), Content(" and "), *call(1, "get", "{}")]),
        (GET.replace("\n", ""), call(0, "get", "{}")),
        (GET.replace("\n", " \n\t "), call(0, "get", "{}")),
        (GET.removesuffix("\n</tool_call>") + GET, [*call(0, "get", "{}"), *call(1, "get", "{}")]),
        (GET.removesuffix("</tool_call>"), call(0, "get", "{}")),
        (GET.removesuffix("_call>"), call(0, "get", "{}")),
        (GET.removesuffix("}\n</tool_call>") + ", ", call(0, "get", "{}")),
        (GET.replace("</tool_call>", "<tool_call>"), [*call(0, "get", "{}"), Content("\n<tool_call>")]),
        (GET.replace("</tool_call>", "that"), [*call(0, "get", "{}"), Content("\nthat")]),
        (GET.replace("}}", '}, "x": 1}'), [*call(0, "get", "{}"), Content(', "x": 1}\n</tool_call>')]),
        (GET.replace("{}", "{]"), [*call(0, "get", "{"), Content("]}\n</tool_call>")]),
        (GET.replace("{}", "{]") + GET,
         [*call(0, "get", "{"), Content("]}\n</tool_call>"), *call(1, "get", "{}")]),
        (f"<tool_call>{GET}", [Content("<tool_call>"), *call(0, "get", "{}")]),
        (f"<<tool_<{GET}", [Content("<<tool_<"), *call(0, "get", "{}")]),
        ("<tool_call>", [Content("<tool_call>")]),
        ("</tool_call>", [Content("</tool_call>")]),
        (" \n", [Content(" \n")]),
        ("", []),
    ],
)  # fmt: skip
def test_every_cut_gives_the_calls(text: str, expected: list[Fragment]) -> None:
    """Whole, in two pieces cut anywhere, letter by letter."""
    parser = HermesFormat({}).parser
    assert parse(parser(TOOLS), text) == expected
    assert parse(parser(TOOLS), *text) == expected
    for place in range(len(text)):
        assert parse(parser(TOOLS), text[:place], text[place:]) == expected


def test_not_in_parallel_the_answer_ends_with_the_first_call() -> None:
    """Text before it is content, whatever follows is dropped; a call that broke off was the first too."""
    form = HermesFormat({})
    assert parse(form.parser(TOOLS, parallel=False), f"a{GET}b{F}") == [Content("a"), *call(0, "get", "{}")]
    broken = GET.replace("{}", "{]")
    found = parse(form.parser(TOOLS, parallel=False), broken + F)
    assert found == [*call(0, "get", "{"), Content("]}\n</tool_call>" + F)]
