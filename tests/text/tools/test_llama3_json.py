"""Calls as Llama 3 writes them."""

from __future__ import annotations

import pytest

from penstock.text.fragments import Content, Fragment
from penstock.text.tools.llama3_json import Llama3JsonFormat
from tool_answers import TOOLS, call, parse

F = '{"name": "f", "parameters": {"a": "};{"}}'
F_CALL = '{"a": "};{"}'
GET = '{"name": "get", "parameters": {}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (F, call(0, "f", F_CALL)),
        (f"\n{F}\n", call(0, "f", F_CALL)),
        (f"<|python_tag|>{F}", call(0, "f", F_CALL)),
        (f"<|python_tag|> {F}", call(0, "f", F_CALL)),
        (f"{F}; {GET}", [*call(0, "f", F_CALL), *call(1, "get", "{}")]),
        (f"<|python_tag|>{F};{GET} ;\n", [*call(0, "f", F_CALL), *call(1, "get", "{}")]),
        (f"<|python_tag|>{F};<|python_tag|>{GET}", [*call(0, "f", F_CALL), *call(1, "get", "{}")]),
        (f"{F}\n{GET}", [*call(0, "f", F_CALL), *call(1, "get", "{}")]),
        ('{"type": "function", "name": "get", "parameters": {}}', call(0, "get", "{}")),
        ('{"name": "get", "arguments": {}}', call(0, "get", "{}")),
        (f"Sure: <|python_tag|>{GET}", [Content("Sure: "), *call(0, "get", "{}")]),
        (f"Sure: {GET}", [Content(f"Sure: {GET}")]),
        (f"{GET} is it.", [*call(0, "get", "{}"), Content(" is it.")]),
        (f"{GET}; or not", [*call(0, "get", "{}"), Content("; or not")]),
        (f"{GET}.{F}", [*call(0, "get", "{}"), Content(f".{F}")]),
        ('<|python_tag|>print("hi")', [Content('<|python_tag|>print("hi")')]),
        ('{"name": "Bob", "age": 5}', [Content('{"name": "Bob", "age": 5}')]),
        ('{"x": 1}; ' + GET, [Content('{"x": 1}; ' + GET)]),
        (F[:-2], call(0, "f", F_CALL[:-1])),
        ("<|python", [Content("<|python")]),
        (";", [Content(";")]),
        ("", []),
    ],
)
def test_every_cut_gives_the_calls(text: str, expected: list[Fragment]) -> None:
    """Whole, in two pieces cut anywhere, letter by letter."""
    parser = Llama3JsonFormat({}).parser
    assert parse(parser(TOOLS), text) == expected
    assert parse(parser(TOOLS), *text) == expected
    for place in range(len(text)):
        assert parse(parser(TOOLS), text[:place], text[place:]) == expected
