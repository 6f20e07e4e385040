"""What holds for the parsers of all formats, whatever a model writes."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.text.fragments import CallArguments, CallStart, Content, Fragment
from penstock.text.tools.hermes import HermesFormat
from penstock.text.tools.json_value import JsonValue
from penstock.text.tools.llama3_json import Llama3JsonFormat
from penstock.text.tools.mistral import MistralFormat
from penstock.text.tools.tool_format import ToolFormat
from tool_answers import TOOLS, call, calls, content, cut, parse

FORMATS: list[ToolFormat] = [HermesFormat({}), Llama3JsonFormat({}), MistralFormat({})]
each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
CALL = '{"name": "f", "arguments": {"x": "γ"}}'
# Greek letters are only where they are content or arguments, so none may get lost.
WORDS = [
    "<tool_call>", "</tool_call>", "<tool_", "<", "<|python_tag|>", "<|python", ";", "[TOOL_CALLS]", "[TOOL",
    "[ARGS]", "[CALL_ID]", "f", "get", "{", "}", "[", "]", ",", " ", "\n", "α", "β\n", "1", "tru", '"name": ',
    '"f"', '"get"', '"nope"', '"arguments": ', '"parameters": ', '{"x": "δ"}', '{"x": [1, {}]}', '{"x": "ε',
    '{"name": "f", ', CALL, f"<tool_call>{CALL}</tool_call>", f"<tool_call>\n{CALL}\n</tool_call>\n",
    '{"arguments": {"x": "ζ"}, "name": "get"}', f"[TOOL_CALLS] [{CALL}, {CALL}]", '{"name": "f"}',
    '[TOOL_CALLS]f[ARGS]{"x": "η"}', f"{CALL}; {CALL}",
]  # fmt: skip
ANSWERS = st.lists(st.sampled_from(WORDS), max_size=14).map("".join)
PLACES = st.lists(st.integers(0, 300), max_size=20)


def greek(text: str) -> str:
    """Its Greek letters."""
    return "".join(letter for letter in text if "α" <= letter <= "ω")


def shown(fragments: list[Fragment]) -> str:
    """All text that reaches a client."""
    return "".join(piece.text for piece in fragments if isinstance(piece, Content | CallArguments))


@each_format
@given(text=ANSWERS | st.text(), places=PLACES)
def test_how_an_answer_is_cut_changes_nothing(form: ToolFormat, text: str, places: list[int]) -> None:
    """In one piece, in some, letter by letter; calls in parallel or not."""
    for parallel in (True, False):
        parser = partial(form.parser, TOOLS, parallel=parallel)
        whole = parse(parser(), text)
        assert parse(parser(), *cut(text, places)) == parse(parser(), *text) == whole


@each_format
@given(text=ANSWERS | st.text())
def test_nothing_is_lost(form: ToolFormat, text: str) -> None:
    """Without a call all is content; with calls, all that is not markup comes out, in order."""
    fragments = parse(form.parser(TOOLS), text)
    assert greek(shown(fragments)) == greek(text)
    if not calls(fragments):
        assert content(fragments) == text


@each_format
@given(text=ANSWERS)
def test_calls_are_of_known_tools_with_json_as_the_model_wrote_it(form: ToolFormat, text: str) -> None:
    """Arguments are an object, or the beginning of one that the model broke off."""
    for name, arguments in calls(parse(form.parser(TOOLS), text)):
        assert name in ("f", "get_weather", "get")
        assert arguments in text
        value = JsonValue()
        value.feed(arguments, 0)
        assert arguments.startswith("{")
        assert not value.is_broken
        if value.is_complete:
            assert isinstance(json.loads(arguments), dict)


@each_format
@given(text=ANSWERS)
def test_not_in_parallel_an_answer_has_one_call_and_ends_with_it(form: ToolFormat, text: str) -> None:
    """As at a stop string; up to there it is the same answer."""
    parser = form.parser(TOOLS, parallel=False)
    alone = parse(parser, text)
    assert len(calls(alone)) <= 1
    if parser.is_complete:
        both = parse(form.parser(TOOLS), text)
        assert alone == both[: len(alone)]
        assert isinstance(alone[-1], CallArguments)
        assert parser.push("more") == []


@each_format
@given(text=st.text(), names=st.lists(st.sampled_from(["f", "get", "é"])))
def test_no_tool_that_the_request_lacks_is_called(form: ToolFormat, text: str, names: list[str]) -> None:
    """Not even with tools that are called almost the same."""
    parser = form.parser([tool for tool in TOOLS if tool.function.name == "get_weather"])
    answer = text + "".join(
        word for name in names for word in (f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>',
        f'<|python_tag|>{{"name": "{name}", "parameters": {{}}}};', f"[TOOL_CALLS]{name}[ARGS]{{}}")
    )  # fmt: skip
    assert content(parse(parser, answer)) == answer


@each_format
def test_a_call_is_told_of_when_its_arguments_open(form: ToolFormat) -> None:
    """And the arguments letter by letter."""
    parser = form.parser(TOOLS)
    before = {"hermes": "<tool_call>", "llama3_json": "", "mistral": "[TOOL_CALLS]["}[form.name]
    assert parser.push(before + '{"name": "f", "arguments": ') == []
    start, arguments = parser.push("{")
    assert isinstance(start, CallStart)
    assert arguments == CallArguments(0, "{")
    for letter in '"a": "\\u00e9':
        assert parser.push(letter) == [CallArguments(0, letter)]
    assert parser.has_calls


@pytest.mark.parametrize("first", ["answer", "nam", "names", ""])
def test_an_answer_in_json_streams_from_its_first_key_on(first: str) -> None:
    """Where a call could stand as well."""
    parser = Llama3JsonFormat({}).parser(TOOLS)
    assert parser.push('{"') == []
    assert parser.push(f'{first}"') == [Content(f'{{"{first}"')]
    assert parser.push(": {") == [Content(": {")]


@each_format
def test_ids_are_new_for_every_call(form: ToolFormat) -> None:
    """Of a shape that the format's templates take."""
    text = {
        "hermes": f"<tool_call>{CALL}</tool_call>",
        "llama3_json": CALL + ";",
        "mistral": "[TOOL_CALLS]f{}",
    }
    ids = [
        piece.id for piece in form.parser(TOOLS).push(text[form.name] * 50) if isinstance(piece, CallStart)
    ]
    assert len(set(ids)) == 50
    assert all(len(id_) == 9 and id_.isalnum() for id_ in ids) == (form.name == "mistral")


@each_format
@pytest.mark.parametrize(
    "word", ["<", "[", "<tool_call>{", "[TOOL_CALLS]", '{"', "\n", ";", '<tool_call>{"name":']
)
def test_long_nonsense_is_read_in_one_go_and_letter_by_letter(form: ToolFormat, word: str) -> None:
    """Work that grew with the square of the length would not end here."""
    text = word * (50_000 // len(word))
    assert parse(form.parser(TOOLS), text) == [Content(text)]
    assert parse(form.parser(TOOLS), *text) == [Content(text)]


def test_members_come_in_any_order() -> None:
    """White space is free, arguments go by either name, a name may have escapes, id and type are dropped."""
    form = HermesFormat({})
    for written in (
        '{"name":"f","arguments":{"a":1}}',
        ' {\n"arguments" : {"a":1} ,\t"name" : "f"\r\n} ',
        '{"id": "x", "name": "f", "type": "function", "arguments": {"a":1}, "id": "y"}',
        '{"parameters": {"a":1}, "name": "\\u0066"}',
    ):
        assert parse(form.parser(TOOLS), f"<tool_call>{written}</tool_call>") == call(0, "f", '{"a":1}')


@pytest.mark.parametrize(
    "written",
    ["{}", "[]", "null", '{"x": 1, "name": "f", "arguments": {}}', '{"id": 1, "name": "f", "arguments": {}}',
     '{"type": "f", "name": "f", "arguments": {}}',
     '{"name": "f"}', '{"arguments": {}}', '{"name": "f", "arguments": "{}"}',
     '{"name": "f", "arguments": null}', '{"name": "f", "arguments": []}', '{"name": 5, "arguments": {}}',
     '{"name": "f", "name": "f", "arguments": {}}', '{"name": "\\ud800", "arguments": {}}', "{'name': 'f'}",
     '{"arguments": {}, "arguments": {}, "name": "f"}', '{"arguments": {}, "parameters": {}, "name": "f"}',
     '{"name": "f" "arguments": {}}', '{"name": "f", "x": NaN, "arguments": {}}', '{"name": ["f"]}',
     '{,"name": "f", "arguments": {}}', '{"name": "get_", "arguments": {}}', '{"name": "", "arguments": {}}'],
)  # fmt: skip
def test_what_is_no_call_is_content(written: str) -> None:
    """Unchanged, marks included, and a call after it is found."""
    text = f"<tool_call>{written}</tool_call>"
    assert parse(HermesFormat({}).parser(TOOLS), text) == [Content(text)]
    after = parse(HermesFormat({}).parser(TOOLS), text + f"<tool_call>{CALL}</tool_call>")
    assert after == [Content(text), *call(0, "f", '{"x": "γ"}')]


@pytest.mark.parametrize("end", range(len(CALL) + 1))
def test_an_answer_that_is_cut_keeps_what_it_has(end: int) -> None:
    """By max_tokens, say: content up to where the arguments open, then the arguments so far."""
    opened = CALL.index('{"x"')
    found = parse(HermesFormat({}).parser(TOOLS), "<tool_call>" + CALL[:end])
    arguments = CALL[opened : min(end, len(CALL) - 1)]
    assert found == ([Content("<tool_call>" + CALL[:end])] if end <= opened else call(0, "f", arguments))
