"""What a request says of its answer's form: a JSON schema, a regular expression, a choice, a grammar.

OpenAI's field is `response_format`. Ours, named as in vLLM, are `structured_outputs`, `regex` and `grammar`.
`read_grammar` turns whichever was given into one value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from penstock.base.errors import InvalidRequestError
from penstock.protocol.strict import NOT_JSON

MAX_SOURCE_BYTES = 64 * 1024  # ours: what a grammar costs grows with its text
MAX_CHOICES = 1024  # ours
MAX_DESCRIPTION_LENGTH = 8192  # ours

Kind = Literal["json_object", "json_schema", "regex", "choice", "lark", "tools"]


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """The form that an answer must have, as the client wrote it. Not yet known to compile."""

    kind: Kind
    source: str
    """The schema's JSON, the regular expression, a JSON array of choices, Lark; empty for json_object."""
    param: str
    """The request's field, for errors about it."""
    trial: str = ""
    """Of tools, whose Lark is ours around their schemas: the same without tokens of the model's own."""


class TextFormat(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonObjectFormat(msgspec.Struct, frozen=True, tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schema with its name."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}\\Z")]
    """OpenAI requires it; nothing depends on it."""
    schema: msgspec.Raw
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_LENGTH)] | None = None
    """The model is not shown it: a chat template has no place for it."""
    strict: bool | None = None
    """False promises nothing at OpenAI; here every schema is enforced."""


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag="json_schema", forbid_unknown_fields=True):
    """JSON that is valid under a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's way to say it: exactly one of these."""

    json: msgspec.Raw = msgspec.Raw()
    """A schema, as an object or as a string that holds one; empty if it is left out."""
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


def read_grammar(
    *,
    response_format: ResponseFormat | None = None,
    structured_outputs: StructuredOutputs | None = None,
    regex: str | None = None,
    grammar: str | None = None,
) -> GrammarSpec | None:
    """The one form that a request asks for; None if any text will do. The arguments are its fields.

    Raises:
        InvalidRequestError: two forms, none in `structured_outputs`, a schema that is no JSON object, an
            empty or too long source; `param` names the field.
    """
    specs = list(_of_response_format(response_format))
    if structured_outputs is not None:
        found = list(_of_structured_outputs(structured_outputs))
        if not found:
            fields = ", ".join(f"'{field}'" for field in structured_outputs.__struct_fields__)
            raise InvalidRequestError(
                f"'structured_outputs' needs exactly one of {fields}", param="structured_outputs"
            )
        specs += found
    if regex is not None:
        specs.append(GrammarSpec("regex", regex, "regex"))
    if grammar is not None:
        specs.append(GrammarSpec("lark", grammar, "grammar"))
    if not specs:
        return None
    if len(specs) > 1:
        first, second = specs[0].param, specs[1].param
        raise InvalidRequestError(f"{first!r} and {second!r} exclude each other", param=second)
    _check(specs[0])
    return specs[0]


def _of_response_format(given: ResponseFormat | None) -> Iterator[GrammarSpec]:
    if isinstance(given, JsonObjectFormat):
        yield GrammarSpec("json_object", "", "response_format")
    elif isinstance(given, JsonSchemaFormat):
        param = "response_format.json_schema.schema"
        yield GrammarSpec("json_schema", _text(bytes(given.json_schema.schema), param), param)


def _of_structured_outputs(given: StructuredOutputs) -> Iterator[GrammarSpec]:
    where = "structured_outputs"
    if (raw := bytes(given.json)) not in (b"", b"null"):
        param = f"{where}.json"
        yield GrammarSpec("json_schema", _unquote(_text(raw, param), param), param)
    if given.regex is not None:
        yield GrammarSpec("regex", given.regex, f"{where}.regex")
    if given.choice is not None:
        if "" in given.choice:
            param = f"{where}.choice[{given.choice.index('')}]"
            raise InvalidRequestError(f"{param!r} is empty: a choice needs a character", param=param)
        yield GrammarSpec("choice", msgspec.json.encode(given.choice).decode(), f"{where}.choice")
    if given.grammar is not None:
        yield GrammarSpec("lark", given.grammar, f"{where}.grammar")
    if given.json_object:
        yield GrammarSpec("json_object", "", f"{where}.json_object")


def _text(raw: bytes, param: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{param!r} is not valid UTF-8", param=param) from error


def _unquote(source: str, param: str) -> str:
    """The schema in a JSON string; other JSON as it is."""
    if not source.lstrip().startswith('"'):
        return source
    try:
        return msgspec.json.decode(source, type=str)
    except NOT_JSON as error:
        raise InvalidRequestError(f"{param!r} is not valid JSON: {error}", param=param) from error


def _check(spec: GrammarSpec) -> None:
    try:
        size = len(spec.source.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{spec.param!r} has half of a surrogate pair", param=spec.param) from error
    if size > MAX_SOURCE_BYTES:
        raise InvalidRequestError(
            f"{spec.param!r} has {size} bytes; {MAX_SOURCE_BYTES} are allowed: simplify it",
            param=spec.param,
        )
    if spec.kind in ("regex", "lark") and not spec.source.strip():
        raise InvalidRequestError(f"{spec.param!r} is empty", param=spec.param)
    if spec.kind == "json_schema":
        try:
            value = msgspec.json.decode(spec.source)
        except NOT_JSON as error:
            raise InvalidRequestError(
                f"{spec.param!r} is not valid JSON: {error}", param=spec.param
            ) from error
        if not isinstance(value, dict):
            raise InvalidRequestError(f"{spec.param!r} must be a JSON object", param=spec.param)
