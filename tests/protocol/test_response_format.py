"""The form of an answer: read strictly, one at a time, within bounds."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import ClientError, InvalidRequestError, UnknownParameterError
from penstock.protocol.response_format import (
    MAX_CHOICES,
    MAX_SOURCE_BYTES,
    GrammarSpec,
    ResponseFormat,
    StructuredOutputs,
    read_grammar,
)
from penstock.protocol.strict import read_request


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that say it, as a request has them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    regex: str | None = None
    grammar: str | None = None


REQUEST = msgspec.json.Decoder(Request)
FIELDS = Request.__struct_fields__


def read(body: bytes) -> GrammarSpec | None:
    """What a request asks for."""
    request = read_request(body, REQUEST, {})
    return read_grammar(**{field: getattr(request, field) for field in FIELDS})


def refused(body: bytes) -> ClientError:
    """Why it is refused."""
    with pytest.raises(ClientError) as caught:
        read(body)
    return caught.value


def schema_format(schema: str, name: str = "answer") -> bytes:
    """OpenAI's way to ask for a schema."""
    return (
        b'{"response_format": {"type": "json_schema", "json_schema": '
        b'{"name": %s, "description": "what it is", "strict": true, "schema": %s}}}'
    ) % (json.dumps(name).encode(), schema.encode())


SCHEMA = '{ "type": "object",\n"properties": {"b": {}, "a": {"enum": ["é", 12345678901234567890123]}} }'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", None),
        (b'{"response_format": null, "structured_outputs": null, "regex": null, "grammar": null}', None),
        (b'{"response_format": {"type": "text"}}', None),
        (
            b'{"response_format": {"type": "json_object"}}',
            GrammarSpec("json_object", "", "response_format"),
        ),
        (
            schema_format(SCHEMA),
            GrammarSpec("json_schema", SCHEMA, "response_format.json_schema.schema"),
        ),
        (b'{"response_format": {"type": "text"}, "regex": "a"}', GrammarSpec("regex", "a", "regex")),
        (b'{"grammar": "start: \\"a\\""}', GrammarSpec("lark", 'start: "a"', "grammar")),
        (
            b'{"structured_outputs": {"json": {"type": "null"}, "regex": null}}',
            GrammarSpec("json_schema", '{"type": "null"}', "structured_outputs.json"),
        ),
        (
            b'{"structured_outputs": {"json": "{\\"type\\": \\"null\\"}"}}',
            GrammarSpec("json_schema", '{"type": "null"}', "structured_outputs.json"),
        ),
        (
            b'{"structured_outputs": {"regex": "[0-9]+", "json": null, "json_object": false}}',
            GrammarSpec("regex", "[0-9]+", "structured_outputs.regex"),
        ),
        (
            b'{"structured_outputs": {"choice": ["yes", "n\\u00f6"]}}',
            GrammarSpec("choice", '["yes","nö"]', "structured_outputs.choice"),
        ),
        (
            b'{"structured_outputs": {"grammar": "start: A"}}',
            GrammarSpec("lark", "start: A", "structured_outputs.grammar"),
        ),
        (
            b'{"structured_outputs": {"json_object": true}}',
            GrammarSpec("json_object", "", "structured_outputs.json_object"),
        ),
    ],
)
def test_every_way_to_say_it_is_read(body: bytes, expected: GrammarSpec | None) -> None:
    """The source stays as it was written: the order of properties means something."""
    assert read(body) == expected


def test_strict_false_is_enforced_all_the_same() -> None:
    """It would promise nothing otherwise."""
    body = schema_format("{}").replace(b"true", b"false")
    assert read(body) == read(schema_format("{}"))


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b'{"response_format": "json"}', "response_format", "Expected"),
        (b'{"response_format": {}}', "response_format.type", "missing"),
        (b'{"response_format": {"type": "xml"}}', "response_format.type", "Invalid value 'xml'"),
        (b'{"response_format": {"type": "json_schema"}}', "response_format.json_schema", "missing"),
        (
            b'{"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}',
            "response_format.json_schema.schema",
            "missing",
        ),
        (schema_format("null"), "response_format.json_schema.schema", "must be a JSON object"),
        (schema_format("true"), "response_format.json_schema.schema", "must be a JSON object"),
        (schema_format("[]"), "response_format.json_schema.schema", "must be a JSON object"),
        (schema_format('"{}"'), "response_format.json_schema.schema", "must be a JSON object"),
        (schema_format('{"enum": ["\\ud800"]}'), None, "not valid JSON"),
        (schema_format('{"enum": [1e999]}'), "response_format.json_schema.schema", "not valid JSON"),
        (schema_format("{}", "a b"), "response_format.json_schema.name", "regex"),
        (schema_format("{}", "a\n"), "response_format.json_schema.name", "regex"),
        (schema_format("{}", "a" * 65), "response_format.json_schema.name", "regex"),
        (b'{"structured_outputs": {}}', "structured_outputs", "needs exactly one of 'json', 'regex'"),
        (b'{"structured_outputs": {"json_object": false}}', "structured_outputs", "needs exactly one of"),
        (b'{"structured_outputs": {"json": "{"}}', "structured_outputs.json", "not valid JSON"),
        (b'{"structured_outputs": {"json": 5}}', "structured_outputs.json", "must be a JSON object"),
        (b'{"structured_outputs": {"json": {"a": "\xff"}}}', "structured_outputs.json", "not valid UTF-8"),
        (b'{"structured_outputs": {"choice": []}}', "structured_outputs.choice", ">= 1"),
        (b'{"structured_outputs": {"choice": ["a", ""]}}', "structured_outputs.choice[1]", "is empty"),
        (b'{"structured_outputs": {"regex": 5}}', "structured_outputs.regex", "Expected"),
        (b'{"regex": ""}', "regex", "is empty"),
        (b'{"grammar": " \\n"}', "grammar", "is empty"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, param: str | None, message: str) -> None:
    """With its path."""
    error = refused(body)
    assert isinstance(error, InvalidRequestError)
    assert error.param == param
    assert message in error.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"response_format": {"type": "text", "json_schema": {}}}',
        b'{"response_format": {"type": "json_object", "strict": true}}',
        b'{"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}',
        b'{"guided_json": {}}',
    ],
)
def test_nothing_is_ignored(body: bytes) -> None:
    """An option that we do not have would change the answer."""
    assert isinstance(refused(body), UnknownParameterError)


WAYS = [
    (b'"response_format": {"type": "json_object"}', "response_format"),
    (b'"structured_outputs": {"json": {}}', "structured_outputs.json"),
    (b'"regex": "a"', "regex"),
    (b'"grammar": "start: A"', "grammar"),
]


@pytest.mark.parametrize("second", range(1, len(WAYS)))
@pytest.mark.parametrize("first", range(len(WAYS) - 1))
def test_two_forms_exclude_each_other(first: int, second: int) -> None:
    """Both are named."""
    if first >= second:
        first, second = second - 1, first + 1
    (one, one_param), (other, other_param) = WAYS[first], WAYS[second]
    error = refused(b"{%s, %s}" % (one, other))
    assert error.message == f"{one_param!r} and {other_param!r} exclude each other"
    assert error.param == other_param


def test_two_forms_in_one_field_exclude_each_other() -> None:
    """As they do in two."""
    error = refused(b'{"structured_outputs": {"regex": "a", "choice": ["a"]}}')
    assert error.param == "structured_outputs.choice"
    assert "'structured_outputs.regex' and" in error.message


@pytest.mark.parametrize("field", ["regex", "grammar"])
def test_a_source_is_bounded_in_bytes(field: str) -> None:
    """The bound is the last size that is allowed."""
    text = "é" * (MAX_SOURCE_BYTES // 2)
    spec = read(json.dumps({field: text}).encode())
    assert spec is not None
    assert spec.source == text
    error = refused(json.dumps({field: text + "a"}).encode())
    assert error.param == field
    assert f"{MAX_SOURCE_BYTES + 1} bytes" in error.message


def test_schemas_and_choices_are_bounded() -> None:
    """In bytes and in number."""
    assert "bytes" in refused(schema_format('{"enum": ["%s"]}' % ("a" * MAX_SOURCE_BYTES))).message
    assert read(json.dumps({"structured_outputs": {"choice": ["a"] * MAX_CHOICES}}).encode())
    assert refused(json.dumps({"structured_outputs": {"choice": ["a"] * (MAX_CHOICES + 1)}}).encode())
    assert (
        "bytes"
        in refused(json.dumps({"structured_outputs": {"choice": ["a" * MAX_SOURCE_BYTES]}}).encode()).message
    )


@pytest.mark.parametrize("depth", [1000, 30_000])
def test_deep_schemas_are_refused(depth: int) -> None:
    """With an error, not with a crash."""
    deep = '{"items":' * depth + "{}" + "}" * depth
    assert isinstance(refused(schema_format(deep)), InvalidRequestError)


@given(st.text(), st.sampled_from(["regex", "grammar"]))
def test_any_text_is_read_or_refused(text: str, field: str) -> None:
    """Half a surrogate pair, which JSON can write, is no text."""
    try:
        spec = read(json.dumps({field: text}).encode())
    except InvalidRequestError:
        assert not text.strip() or any("\ud800" <= letter <= "\udfff" for letter in text)
    else:
        assert spec is not None
        assert spec.source == text


def test_half_a_surrogate_pair_from_elsewhere_is_refused() -> None:
    """Python strings can have one."""
    with pytest.raises(InvalidRequestError, match="surrogate"):
        read_grammar(regex="a\ud800")


KEYS = st.sampled_from(["type", "json_schema", "json", "schema", "name", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(VALUES, st.sampled_from(FIELDS))
def test_any_value_is_read_or_refused(value: Any, field: str) -> None:
    """With an error of ours."""
    with suppress(ClientError):
        spec = read(json.dumps({field: value}).encode())
        assert spec is None or spec.param.startswith(field)
