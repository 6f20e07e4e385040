"""Strict reading of request bodies: every field is honoured or refused by name, never ignored.

A request type declares the fields that are built. Its table of unbuilt fields lists the API's other fields,
each with the values that ask for nothing beyond what is done anyway (null always does); those pass, any other
value is a 400 `unsupported_parameter`. A field in neither place is a 400 `unknown_parameter`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from penstock.base.errors import InvalidRequestError, UnknownParameterError, UnsupportedParameterError

Unbuilt = Mapping[str, tuple[Any, ...]]
T = TypeVar("T", bound=msgspec.Struct)

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
# msgspec ends its messages with the path: "Expected `str`, got `int` - at `$.messages[0].content`".
_PATH = re.compile(r" - at `(?P<key>key in )?\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`")
# A client's own words in an error, and so in a log line, are cut to this many characters.
MAX_SHOWN = 100
# What msgspec raises for bytes that are not JSON: its own error, Python's for UTF-8, Python's for nesting.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object, their values unread.

    Raises:
        InvalidRequestError: not UTF-8, not JSON, or not an object.
    """
    try:
        return _FIELDS.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequestError("the body must be a JSON object") from error
    except NOT_JSON as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error


def read_request(body: bytes, decoder: msgspec.json.Decoder[T], unbuilt: Unbuilt) -> T:
    """Decodes a request and refuses, by name, what it asks for and we have not built.

    Raises:
        InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
    """
    fields = read_fields(body)
    known = {field.encode_name for field in msgspec.structs.fields(decoder.type)}
    rest = {name: raw for name, raw in fields.items() if name not in known}
    if rest:
        refuse_unbuilt(rest, unbuilt)
        body = msgspec.json.encode({name: raw for name, raw in fields.items() if name in known})
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise explain(error) from error
    except NOT_JSON as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error


def refuse_unbuilt(fields: Mapping[str, msgspec.Raw], unbuilt: Unbuilt, prefix: str = "") -> None:
    """Raises for the first field that is unknown, or unbuilt with a value that would change the answer."""
    for name, raw in fields.items():
        param = f"{prefix}{shown(name)}"
        if name not in unbuilt:
            raise UnknownParameterError(f"unknown field {param!r}", param=param)
        try:
            value = msgspec.json.decode(raw)
        except NOT_JSON as error:
            raise InvalidRequestError(
                f"the value of {param!r} is not valid JSON: {error}", param=param
            ) from error
        if value is not None and not any(_same(value, neutral) for neutral in unbuilt[name]):
            allowed = "".join(f" or {msgspec.json.encode(n).decode()}" for n in unbuilt[name])
            raise UnsupportedParameterError(
                f"{param!r} is not supported; leave it out (null{allowed} is accepted)", param=param
            )


def shown(text: str) -> str:
    """A client's text as an error repeats it: not longer than MAX_SHOWN."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _same(value: Any, neutral: Any) -> bool:
    """Equality without Python's True == 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def explain(error: msgspec.ValidationError) -> InvalidRequestError | UnknownParameterError:
    """Turns msgspec's message into ours, with the field's path as `param`."""
    message = str(error)
    found = _PATH.search(message)
    path = found["path"].lstrip(".") if found else ""
    text = message[: found.start()] if found else message
    for pattern, kind in ((_UNKNOWN, UnknownParameterError), (_MISSING, InvalidRequestError)):
        if name := pattern.search(text):
            param = f"{path}.{shown(name['name'])}".lstrip(".")
            verb = "unknown" if kind is UnknownParameterError else "missing"
            return kind(f"{verb} field {param!r}", param=param)
    return InvalidRequestError(f"invalid value for {path or 'the body'!r}: {text}", param=path or None)
