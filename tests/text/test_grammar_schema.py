"""Every finished answer validates against its schema, says another implementation of JSON schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from grammar_walk import MODEL_VOCAB_SIZE, chat_tokenizer, walk
from penstock.protocol.response_format import GrammarSpec
from penstock.text.constraint import Grammar, Vocabulary
from penstock.text.grammar import build_grammar
from penstock.text.grammar_source import translate
from penstock.text.tokenizer import Tokenizer

NAMES = st.sampled_from(["a", "b", "name", "ключ", "😀", 'q"\\', "a\n", "", "minimum", "/"])
SMALL = st.integers(-300, 300)


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
    typed(
        "number",
        minimum=SMALL,
        maximum=SMALL.map(lambda n: n / 4),
        exclusiveMaximum=SMALL,
    ),
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
