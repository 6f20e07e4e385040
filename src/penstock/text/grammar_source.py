"""From what a client wrote to a grammar as llguidance reads it, with the limits under which it compiles.

The limits make compilations and masks end by themselves, for a thread cannot be stopped from outside; what
they do not bound, `grammar_trial` finds out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from math import ceil, floor
from typing import Any

from llguidance import LLParserLimits, regex_to_lark

from penstock.protocol.response_format import GrammarSpec

# At most this is put where JSON allows white space: one space, or a new line with its indentation. Without a
# bound a weak model goes on with spaces until its tokens are used up.
WHITESPACE = r"[ \t]|\r?\n[ \t]{0,32}"

# What an Earley parser does for one token can grow with the square of a row of its table, and a row is
# counted when it is complete. So the symbols of a grammar are limited too.
# A schema's rows are wide and cheap: four items for each optional property. In a client's own grammar a row
# as wide is mostly ambiguous.
_MAX_SYMBOLS, _MAX_LARK_SYMBOLS = 20_000, 4_000
_MAX_ROW, _MAX_LARK_ROW = 2_000, 500
_MAX_ITEMS, _MAX_LARK_ITEMS = 20_000, 5_000
# Derivatives of regular expressions for one mask: a few milliseconds.
_MAX_STEP_FUEL = 100_000
# 600 bytes each, shared by all answers of a grammar.
_MAX_LEXER_STATES = 50_000


def limits(spec: GrammarSpec) -> LLParserLimits:
    """Bounds on the work for a compilation and for a mask."""
    is_lark = spec.kind == "lark"
    return LLParserLimits(
        max_grammar_size=_MAX_LARK_SYMBOLS if is_lark else _MAX_SYMBOLS,
        max_items_in_row=_MAX_LARK_ROW if is_lark else _MAX_ROW,
        step_max_items=_MAX_LARK_ITEMS if is_lark else _MAX_ITEMS,
        step_lexer_fuel=_MAX_STEP_FUEL,
        max_lexer_states=_MAX_LEXER_STATES,
        verbose_errors=False,
    )


def has_schema(spec: GrammarSpec) -> bool:
    """True if its compilation may take work that `limits` does not bound."""
    return spec.kind in ("json_schema", "tools") or (spec.kind == "lark" and "%json" in spec.source)


def translate(spec: GrammarSpec) -> str:
    """The grammar for `LLMatcher`.

    Raises:
        ValueError: it cannot be enforced, with the reason.
    """
    lark = _lark(spec)
    # Behind the client's own options, so that it holds. Where only one text can follow, llguidance would cut
    # all of it into tokens, anew for each mask: 15 ms for a text of 60,000 characters.
    return json.dumps({"grammars": [{"lark_grammar": f'{lark}\n%llguidance {{"no_forcing": true}}\n'}]})


def _lark(spec: GrammarSpec) -> str:
    if spec.kind in ("lark", "tools"):
        return spec.source
    if spec.kind == "regex":
        return f"start: /{regex_to_lark(spec.source, '')}/"
    if spec.kind == "choice":  # Lark writes strings as JSON does
        return "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, json.loads(spec.source)))
    if spec.kind == "json_object":
        return _schema({"type": "object"})
    try:
        schema = json.loads(spec.source)
        refuse_inexact(schema)
        return _schema(schema)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _schema(schema: dict[str, Any]) -> str:
    return "start: %json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}})


def refuse_inexact(schema: dict[str, Any]) -> None:
    """Raises ValueError for what llguidance takes of a schema and does not enforce to the letter."""
    if "x-guidance" in schema:
        raise ValueError("'x-guidance' is not a keyword of JSON schema")
    parts = list(_objects(schema))
    for part in parts:
        required = part.get("required")
        named = len(set(map(str, required))) if isinstance(required, list) else 0
        # A name that no keyword lists may come twice, and counts once.
        if any(least > named + 1 for least in _numbers([part], "minProperties")):
            raise ValueError(
                f"'minProperties' above {named + 1} cannot be enforced here: name more in 'required'"
            )
    # Of the numbers above 3 and up to 3.5 it takes 3 for one, of those below -3 and down to -3.5 it takes -3.
    # Bounds may come together from different parts.
    above = {floor(limit) for limit in _numbers(parts, "maximum", "exclusiveMaximum") if limit % 1}
    below = {ceil(limit) for limit in _numbers(parts, "minimum", "exclusiveMinimum") if limit % 1}
    for keyword, plain, near, sign in (
        ("exclusiveMinimum", "minimum", above, 1),
        ("exclusiveMaximum", "maximum", below, -1),
    ):
        in_draft_4 = [part for part in parts if part.get(keyword) is True]
        for limit in (*_numbers(parts, keyword), *_numbers(in_draft_4, plain)):
            if limit in near and limit * sign >= 0:
                raise ValueError(f"{keyword!r} {limit} cannot be enforced with another bound so near to it")


def _numbers(parts: Iterable[dict[str, Any]], *keywords: str) -> Iterator[float]:
    """The numbers that these keywords have; in draft 4 some are true or false."""
    for part in parts:
        for keyword in keywords:
            value = part.get(keyword)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield value


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON value; its depth was bounded when it was read."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _objects(inner)
