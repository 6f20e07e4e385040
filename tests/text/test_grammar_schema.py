"""Every finished answer validates against its schema, says another implementation of JSON schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from grammar_walk import MODEL_VOCAB_SIZE, chat_tokenizer, new_masks, tokens_in, walk
from penstock.protocol.response_format import GrammarSpec
from penstock.text.constraint import Grammar, Vocabulary
from penstock.text.grammar import build_grammar
from penstock.text.grammar_source import translate
from penstock.text.tokenizer import Tokenizer

NAMES = st.sampled_from(["a", "b", "name", "ключ", "😀", 'q"\\', "a\n", "", "minimum", "/"])
SMALL = st.integers(-300, 300)
QUARTERS = st.integers(-12, 12).map(lambda number: number / 4) | SMALL


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level, with two end tokens."""
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Of a model with more tokens than the tokenizer has."""
    return Vocabulary.of(tokenizer, MODEL_VOCAB_SIZE)


def compiled(schema: Any, vocabulary: Vocabulary) -> Grammar:
    """A schema, compiled."""
    spec = GrammarSpec("json_schema", json.dumps(schema), "schema")
    return build_grammar(spec, translate(spec), vocabulary)


def optional(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these keywords."""
    return st.fixed_dictionaries({}, optional=keywords)


def typed(name: str, **keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A type with some of its keywords."""
    return optional(**keywords).map(lambda given: {"type": name, **given})


VALUES = st.recursive(
    st.none() | st.booleans() | SMALL | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
LEAVES = st.one_of(
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, VALUES),
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}, {}]),
    typed("integer", minimum=SMALL, maximum=SMALL, multipleOf=st.integers(1, 12)),
    typed("integer", exclusiveMinimum=SMALL, exclusiveMaximum=SMALL),
    typed("number", minimum=QUARTERS, maximum=QUARTERS),
    typed("number", exclusiveMinimum=QUARTERS, exclusiveMaximum=QUARTERS),
    typed(
        "string",
        minLength=st.integers(0, 6),
        maxLength=st.integers(0, 9),
        pattern=st.sampled_from(["^[a-z]{2,5}$", "[0-9]", "^(x|yy)+", "^aé+$", '^[^"\\\\]*$', r"^\w+\s\d$"]),
    ),
)


def branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas with schemas inside."""
    properties = st.dictionaries(NAMES, inner, max_size=4)
    return st.one_of(
        typed(
            "array",
            items=inner,
            prefixItems=st.lists(inner, min_size=1, max_size=2),
            minItems=st.integers(0, 3),
            maxItems=st.integers(0, 5),
        ),
        typed(
            "object",
            properties=properties,
            patternProperties=st.dictionaries(st.sampled_from(["^a", "^x+$"]), inner, max_size=2),
            required=st.lists(NAMES, max_size=3, unique=True),
            additionalProperties=st.booleans() | inner,
            minProperties=st.integers(0, 4),
            maxProperties=st.integers(0, 5),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda options: {"allOf": options}, st.lists(inner, min_size=1, max_size=2)),
        st.just({"$ref": "#/$defs/tree"}),
    )


SCHEMAS = st.recursive(LEAVES, branches, max_leaves=8)
TREE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
    },
    "required": ["value", "children"],
    "additionalProperties": False,
}


@settings(max_examples=300)
@given(SCHEMAS, st.integers(0, 1 << 30))
def test_every_finished_answer_validates(
    tokenizer: Tokenizer, vocabulary: Vocabulary, schema: dict[str, Any], seed: int
) -> None:
    """A schema that is refused says why in other tests."""
    schema = {**schema, "$defs": {"tree": TREE}}
    try:
        grammar = compiled(schema, vocabulary)
    except ValueError:
        reject()
    answer, is_finished = walk(grammar, seed)
    text = tokenizer.decode(answer)
    assert is_finished, text
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["x", None, 1.5]}},
        "inner": {"type": "object", "additionalProperties": {"$ref": "#"}},
    },
    "required": ["name", "tags", "inner"],
    "additionalProperties": False,
}
LEAF = {"name": 'é "quoted" \n 😀 \\', "tags": ["x", None, 1.5], "inner": {}}
VALUE = {**LEAF, "tags": [], "inner": {"a": LEAF, "b": {**LEAF, "inner": {"c": LEAF}}}}


def ends_after(text: str, tokenizer: Tokenizer, grammar: Grammar) -> bool:
    """True if a text is a whole answer; raises if it is not even the beginning of one."""
    masks = new_masks()
    grammar.new_constraint().fill(masks, tokenizer.encode(text, add_special_tokens=False), ())
    return all(token in tokens_in(masks[0]) for token in tokenizer.end_token_ids)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "layout", [{}, {"separators": (",", ":")}, {"indent": 2}, {"indent": 4}, {"indent": "\t"}]
)
def test_the_usual_layouts_are_allowed(
    tokenizer: Tokenizer, vocabulary: Vocabulary, layout: dict[str, Any], line_end: str
) -> None:
    """As programs write JSON, and models that learnt from them."""
    text = json.dumps(VALUE, ensure_ascii=False, **layout).replace("\n", line_end)
    for schema in (RECORD, {"type": "object"}):
        grammar = compiled(schema, vocabulary)
        assert ends_after(text, tokenizer, grammar)
        assert not ends_after(text[:-1], tokenizer, grammar)


def test_white_space_is_bounded(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """A model that wants nothing else comes to an end all the same."""
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    constraint = compiled({**schema, "additionalProperties": False}, vocabulary).new_constraint()
    answer: list[int] = []
    while True:
        masks = new_masks()
        constraint.fill(masks, answer, ())
        allowed = tokens_in(masks[0])
        if vocabulary.end_tokens[0] in allowed:
            break
        blank = [token for token in b"\n\t " if token in allowed]
        answer.append(blank[0] if blank else allowed[0])
    text = tokenizer.decode(answer)
    assert json.loads(text) == {"a": None}
    assert len(text) == len('{"a":null}') + 4 * len("\n" + 32 * "\t")
