"""The grammars of the formats: what they admit, the parser reads as the calls that were asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from byte_tokenizer import IM_END, MERGES, byte_level
from penstock.text.fragments import CallStart, PlainText, Reasoning
from penstock.text.reasoning import THINK, ReasoningParser
from penstock.text.tools.hermes import HermesFormat
from penstock.text.tools.llama3_json import Llama3JsonFormat
from penstock.text.tools.mistral import MistralFormat
from penstock.text.tools.tool_format import ToolFormat
from tool_answers import calls, content, parse, tool

MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 4},
        "unit": {"enum": ["°C", "°F"]},
        "days": {"$ref": "#/$defs/days"},
        "<b>": {"type": "boolean"},
    },
    "$defs": {"days": {"type": "array", "items": {"enum": [1, 2, 3, 30]}, "maxItems": 3}},
    "required": ["city", "days"],
    "additionalProperties": False,
}  # fmt: skip
FLAT = {"properties": {"on": {"type": "boolean"}}, "additionalProperties": False}
TOOLS = (tool("get_weather", WEATHER), tool("get", FLAT))
FORMATS = (HermesFormat, Llama3JsonFormat, MistralFormat)


@cache
def rust(marks: tuple[str, ...]) -> RustTokenizer:
    """Byte-level, with tokens for these marks, the first two of them not special, as in Qwen's."""
    tokenizer = byte_level(MERGES)
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in marks[:2]])
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks[2:]])
    return tokenizer


@cache
def guide(marks: tuple[str, ...]) -> LLTokenizer:
    """The same for llguidance."""
    tokenizer = rust(marks)
    return LLTokenizer(tokenizer.to_str(), eos_token=tokenizer.token_to_id(IM_END))


def ids_of(marks: tuple[str, ...]) -> dict[str, int]:
    """As `Tokenizer.added_tokens`."""
    return {token.content: number for number, token in rust(marks).get_added_tokens_decoder().items()}


def matcher(grammar: str, marks: tuple[str, ...]) -> LLMatcher:
    """At the beginning of an answer."""
    found = LLMatcher(guide(marks), grammar)
    assert not found.is_error(), found.get_error()
    return found


def admits(grammar: str, text: str, marks: tuple[str, ...] = ()) -> bool:
    """True if the text, marks encoded as tokens where there are some, is a whole answer."""
    found = matcher(grammar, marks)
    ids = rust(marks).encode(text, add_special_tokens=False).ids
    return found.try_consume_tokens(ids) == len(ids) and found.is_accepting()


def draw(grammar: str, marks: tuple[str, ...], rng: random.Random) -> str:
    """An answer of tokens that are drawn from the admitted ones, one like the other."""
    found, ids, end = matcher(grammar, marks), list[int](), rust(marks).token_to_id(IM_END)
    while not found.is_stopped() and len(ids) < 3000:
        bits = found.compute_bitmask()
        allowed = [t for t in range(rust(marks).get_vocab_size()) if bits[t // 8] >> (t % 8) & 1]
        others = [token for token in allowed if token != end]
        token = end if end in allowed and (not others or rng.random() < 0.5) else rng.choice(others)
        assert found.consume_token(token)
        if token != end:
            ids.append(token)
    assert len(ids) < 3000
    return str(rust(marks).decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("marks", [(), MARKS], ids=["spelled", "tokens"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tools", [TOOLS, TOOLS[:1]], ids=["two", "one"])
def test_every_answer_that_a_grammar_admits_is_calls_and_nothing_else(
    kind: type[ToolFormat], parallel: bool, marks: tuple[str, ...], tools: Sequence[Any]
) -> None:
    """Of the tools that may be called, with arguments that validate; exactly one unless in parallel."""
    form = kind(ids_of(marks))
    grammar = form.grammar(tools, parallel=parallel)
    schemas = {entry.function.name: entry.function.parameters for entry in tools}
    counts, names = set(), set()
    for seed in range(12):
        text = draw(grammar, marks, random.Random(seed))
        found = parse(form.parser(tools), text)
        assert content(found) == ""
        for name, arguments in calls(found):
            jsonschema.validate(json.loads(arguments), schemas[name])
            names.add(name)
        counts.add(len(calls(found)))
    assert 0 not in counts
    assert (max(counts) > 1) == parallel
    assert names == set(schemas)


WRITTEN = {
    "hermes": '<tool_call>\n{"name": "get", "arguments": {"on": true}}\n</tool_call>',
    "llama3_json": '{"name": "get", "parameters": {"on": true}}',
    "mistral": '[TOOL_CALLS] [{"name": "get", "arguments": {"on": true}}]',
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_grammar_admits_calls_as_templates_write_them_and_refuses_others(kind: type[ToolFormat]) -> None:
    """Other tools, other arguments, text, nothing."""
    form = kind({})
    written = WRITTEN[form.name]
    grammar = form.grammar(TOOLS)
    assert admits(grammar, written)
    for other in (
        "", "no", f"Let me see. {written}", f"{written} done", written.replace("get", "got"), written[:-1],
        written.replace("true", "1"), written.replace("on", "off"), written.replace('{"on": true}', "[]"),
        written.replace('{"on": true}', "null"), written.replace("true", "true" + " " * 20),
    ):  # fmt: skip
        assert not admits(grammar, other), other
    assert not admits(form.grammar(TOOLS[:1]), written)


def test_several_calls_are_admitted_in_parallel_only() -> None:
    """Between them stands what templates put there."""
    block, flat = WRITTEN["hermes"], WRITTEN["llama3_json"]
    entry = flat.replace("parameters", "arguments")
    for form, text in (
        (HermesFormat({}), f"{block}\n{block}"),
        (Llama3JsonFormat({}), f"{flat}; {flat}"),
        (MistralFormat({}), f"[TOOL_CALLS] [{entry}, {entry}]"),
    ):
        assert admits(form.grammar(TOOLS), text)
        assert not admits(form.grammar(TOOLS, parallel=False), text)


def test_marks_are_tokens_where_the_tokenizer_has_them() -> None:
    """Spelled out they would be text that the model never saw there."""
    for kind, text in (
        (HermesFormat, WRITTEN["hermes"]),
        (MistralFormat, '[TOOL_CALLS]get[ARGS]{"on": true}[TOOL_CALLS]get[ARGS]{}'),
    ):
        grammar = kind(ids_of(MARKS)).grammar(TOOLS)
        assert admits(grammar, text, MARKS)
        spelled = list(text.encode())
        assert matcher(grammar, MARKS).try_consume_tokens(spelled) == 0


def test_a_tool_without_parameters_takes_any_object() -> None:
    """And no other value."""
    grammar = HermesFormat({}).grammar([tool("get")])
    for arguments in ("{}", '{"a": [1, {"b": null}]}'):
        assert admits(grammar, WRITTEN["hermes"].replace('{"on": true}', arguments))
    for other in ("[]", "1", '"{}"'):
        assert not admits(grammar, WRITTEN["hermes"].replace('{"on": true}', other))


@pytest.mark.parametrize("text", ['"', "%json {}", "}}\nstart: /.*/\n", "\\", "//", "é\u2028", "\x00", '"}'])
def test_what_a_schema_says_stays_in_the_schema(text: str) -> None:
    """Nothing that a client writes there is read as grammar."""
    schema = {
        "description": text,
        "properties": {text: {"const": text}},
        "required": [text],
        "additionalProperties": False,
    }
    grammar = HermesFormat({}).grammar([tool("get", schema)])
    arguments = json.dumps({text: text}, ensure_ascii=False)
    assert admits(grammar, WRITTEN["hermes"].replace('{"on": true}', arguments))
    assert not admits(grammar, WRITTEN["hermes"])
    assert not admits(grammar, "x")


@pytest.mark.parametrize("marks", [(), MARKS], ids=["spelled", "tokens"])
def test_a_model_may_reason_before_a_call_that_is_forced(marks: tuple[str, ...]) -> None:
    """It must end its reasoning if the prompt has begun it; then only a call can follow."""
    form = HermesFormat(ids_of(marks))
    written = WRITTEN["hermes"]
    thought = "Hm <x>\n{}\n</think>\n\n"
    inside = form.grammar(TOOLS, opening=THINK.lark(ids_of(marks), starts_inside=True))
    before = form.grammar(TOOLS, opening=THINK.lark(ids_of(marks), starts_inside=False))
    assert admits(inside, thought + written, marks)
    assert admits(inside, "</think>" + written, marks)
    assert admits(before, f"<think>{thought}{written}", marks)
    assert admits(before, written, marks)
    for grammar, text in ((inside, written), (inside, thought), (inside, f"{thought}so{written}"),
                          (before, thought + written), (before, f"<think>a{written}")):  # fmt: skip
        assert not admits(grammar, text, marks)
    parser = ReasoningParser(THINK, form.parser(TOOLS), starts_inside=True)
    reasoning, start, _ = parse(parser, thought + written)
    assert reasoning == Reasoning("Hm <x>\n{}")
    assert isinstance(start, CallStart)


def test_reasoning_ends_where_the_parser_ends_it() -> None:
    """At the first closing tag, spelled or not."""
    for marks in ((), MARKS):
        opening = THINK.lark(ids_of(marks), starts_inside=True)
        grammar = HermesFormat(ids_of(marks)).grammar(TOOLS, opening=opening)
        spelled = list(b"a</think>b")
        assert matcher(grammar, marks).try_consume_tokens(spelled) < len(spelled)
    found = parse(ReasoningParser(THINK, PlainText(), starts_inside=True), "a</think>b</think>")
    assert content(found) == "b</think>"


def test_a_hundred_tools_make_one_grammar() -> None:
    """Each with its own schema."""
    tools = [tool(f"tool-{index}", {"properties": {"x": {"const": index}}}) for index in range(128)]
    grammar = HermesFormat({}).grammar(tools)
    call = WRITTEN["hermes"].replace("get", "tool-77")
    assert admits(grammar, call.replace('{"on": true}', '{"x": 77}'))
    assert not admits(grammar, call.replace('{"on": true}', '{"x": 78}'))
