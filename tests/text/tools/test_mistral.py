"""Calls as Mistral's models write them, older and newer; from tokens on."""

from __future__ import annotations

from pathlib import Path

import pytest

from byte_tokenizer import MERGES, byte_fallback, byte_level, write_tokenizer
from penstock.text.detokenizer import Detokenizer
from penstock.text.fragments import Content, Fragment
from penstock.text.tokenizer import Tokenizer
from penstock.text.tools.mistral import MistralFormat
from tool_answers import TOOLS, call, parse

F = '{"name": "f", "arguments": {"a": "]"}}'
F_CALL = '{"a": "]"}'
GET = '{"name": "get", "arguments": {}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[TOOL_CALLS] [{F}]", call(0, "f", F_CALL)),
        (f"[TOOL_CALLS][{F},{GET}]", [*call(0, "f", F_CALL), *call(1, "get", "{}")]),
        (f" [TOOL_CALLS] [\n{F} , {GET}\n] ", [*call(0, "f", F_CALL), *call(1, "get", "{}")]),
        ('[TOOL_CALLS] [{"name": "get", "arguments": {}, "id": "abcdefghi"}]', call(0, "get", "{}")),
        (f"Well [TOOL_CALLS] [{GET}] so", [Content("Well "), *call(0, "get", "{}"), Content(" so")]),
        (f"[TOOL_CALLS] [{GET}", call(0, "get", "{}")),
        (f"[TOOL_CALLS] [{GET}, ", [*call(0, "get", "{}")]),
        (f"[TOOL_CALLS] [{GET}; {F}]", [*call(0, "get", "{}"), Content(f"; {F}]")]),
        (f'[TOOL_CALLS] [{GET}, {{"name": "no"}}]', [*call(0, "get", "{}"), Content(', {"name": "no"}]')]),
        ("[TOOL_CALLS] []", [Content("[TOOL_CALLS] []")]),
        (f"[TOOL_CALLS] {GET}", [Content(f"[TOOL_CALLS] {GET}")]),
        (f"[{GET}]", [Content(f"[{GET}]")]),
        ("[TOOL_CALLS]f[ARGS]" + F_CALL, call(0, "f", F_CALL)),
        ("[TOOL_CALLS] f [ARGS]{}", [Content("[TOOL_CALLS] f [ARGS]{}")]),
        ("[TOOL_CALLS]f[CALL_ID]aB3[ARGS] {}", call(0, "f", "{}")),
        ("[TOOL_CALLS]f{}", call(0, "f", "{}")),
        ("[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{}",
         [*call(0, "f", "{}"), *call(1, "get_weather", "{}")]),
        ("[TOOL_CALLS]f[ARGS]{}\n[TOOL_CALLS]no[ARGS]{}",
         [*call(0, "f", "{}"), Content("\n[TOOL_CALLS]no[ARGS]{}")]),
        ("[TOOL_CALLS]f[ARGS]{}, I think", [*call(0, "f", "{}"), Content(", I think")]),
        ("[TOOL_CALLS]ff[ARGS]{}", [Content("[TOOL_CALLS]ff[ARGS]{}")]),
        ("[TOOL_CALLS]f[ARG]{}", [Content("[TOOL_CALLS]f[ARG]{}")]),
        ("[TOOL_CALLS]f[CALL_ID]a{}", [Content("[TOOL_CALLS]f[CALL_ID]a{}")]),
        ("[TOOL_CALLS]f[ARGS][]", [Content("[TOOL_CALLS]f[ARGS][]")]),
        ('[TOOL_CALLS]f[ARGS]{"a', call(0, "f", '{"a')),
        ("[TOOL_CALLS]f[ARGS]", [Content("[TOOL_CALLS]f[ARGS]")]),
        ("", []),
    ],
)  # fmt: skip
def test_every_cut_gives_the_calls(text: str, expected: list[Fragment]) -> None:
    """Whole, in two pieces cut anywhere, letter by letter."""
    parser = MistralFormat({}).parser
    assert parse(parser(TOOLS), text) == expected
    assert parse(parser(TOOLS), *text) == expected
    for place in range(len(text)):
        assert parse(parser(TOOLS), text[:place], text[place:]) == expected


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_calls_are_found_in_tokens_that_decoding_would_hide(tmp_path: Path, kind: str) -> None:
    """Shown as text by the detokenizer; hidden, they would leave text without marks."""
    rust = {"byte_level": byte_level(MERGES), "byte_fallback": byte_fallback()}[kind]
    rust.add_special_tokens(["[TOOL_CALLS]", "[ARGS]"])
    tokenizer = Tokenizer(write_tokenizer(rust, tmp_path))
    form = MistralFormat(tokenizer.added_tokens)
    text = 'hello world[TOOL_CALLS]f[ARGS]{"é": "你好"}[TOOL_CALLS] [{"name": "get", "arguments": {}}]'
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.special_tokens["[TOOL_CALLS]"] in ids
    detokenizer = Detokenizer(tokenizer.showing(form.visible_tokens))
    pieces = [*(detokenizer.push(token) for token in ids), detokenizer.flush()]
    expected = [Content("hello world"), *call(0, "f", '{"é": "你好"}'), *call(1, "get", "{}")]
    assert parse(form.parser(TOOLS), *pieces) == expected
    assert "[TOOL_CALLS]" not in tokenizer.decode(ids)
