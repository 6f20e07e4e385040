"""A trial says whether a grammar can be compiled at all; the process that tries it never outlives it."""

from __future__ import annotations

import json

import pytest

from penstock.protocol.response_format import GrammarSpec
from penstock.text.grammar import STACK_BYTES
from penstock.text.grammar_source import has_schema, translate
from penstock.text.grammar_trial import is_bounded


def tried(schema: object) -> bool:
    """What a trial says of a schema."""
    return is_bounded(translate(GrammarSpec("json_schema", json.dumps(schema), "schema")), STACK_BYTES)


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"enum": ["é", 1]}, {"type": "nonsense"}, {"not": {}}]
)
def test_what_ends_passes(schema: object) -> None:
    """Also if it is not valid: the reason is found later."""
    assert tried(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "string", "pattern": f"(a|b){n}.*[c-f]{{3,9}}"} for n in range(32)]},
        {"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83, 79)]},
    ],
)
def test_what_does_not_end_in_time_is_found_out(schema: object) -> None:
    """By the time of the processor, not of the clock."""
    assert not tried(schema)


def test_what_overflows_the_stack_is_found_out() -> None:
    """The process dies of it, and only that one."""
    chain = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}]} for n in range(1500)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**chain, "d1500": {"type": "null"}}}
    assert tried(schema)
    source = translate(GrammarSpec("json_schema", json.dumps(schema), "schema"))
    assert not is_bounded(source, stack_bytes=1 << 18)


def test_schemas_are_tried_wherever_they_are() -> None:
    """Regular expressions, rules and choices are bounded by llguidance's own limits."""
    assert has_schema(GrammarSpec("json_schema", "{}", "field"))
    assert has_schema(GrammarSpec("lark", 'start: %json {"type": "null"}', "field"))
    assert not has_schema(GrammarSpec("lark", 'start: "a"', "field"))
    assert not has_schema(GrammarSpec("regex", "%json", "field"))
