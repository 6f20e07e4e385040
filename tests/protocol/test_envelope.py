"""The envelope of errors: total, and without our insides."""

from __future__ import annotations

import json

import msgspec
import pytest
from openai.types import ErrorObject

from penstock.base import errors
from penstock.base.errors import InternalError, InvalidRequestError, PenstockError
from penstock.protocol.envelope import ErrorEnvelope, encode_error

KINDS = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, PenstockError)
]
SECRET = "password=hunter2"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_of_ours_keeps_its_marks(kind: type[PenstockError]) -> None:
    """Message, type, field and code are what the class and the raiser said, in OpenAI's shape."""
    envelope = json.loads(encode_error(kind("wrong value", param="a.b")))
    assert envelope == {
        "error": {"message": "wrong value", "type": kind.type, "param": "a.b", "code": kind.code}
    }
    ErrorObject.model_validate(envelope["error"], strict=True)


@pytest.mark.parametrize(
    "error",
    [Exception(SECRET), ValueError(SECRET), KeyError(SECRET), OSError(5, SECRET), KeyboardInterrupt(SECRET),
     ExceptionGroup(SECRET, [ValueError(SECRET)]), UnicodeDecodeError("utf-8", b"", 0, 1, SECRET),
     AssertionError(SECRET), RecursionError(SECRET)],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_is_not_ours_becomes_an_internal_error_without_details(error: BaseException) -> None:
    """Only the log has the details."""
    body = encode_error(error)
    assert json.loads(body)["error"]["code"] == InternalError.code
    assert SECRET.encode() not in body
    assert type(error).__name__.encode() not in body


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", 'quote " and \n', "\x00", "é😀", "", "\u2028"])
def test_any_text_gives_valid_json_on_one_line(text: str) -> None:
    """Lone surrogates come from file names; the envelope also travels inside an event of a stream."""
    body = encode_error(InvalidRequestError(text, param=text))
    assert b"\n" not in body
    assert json.loads(body)["error"]["message"] == text.encode(errors="replace").decode()


def test_the_envelope_reads_itself_back() -> None:
    """The gateway reads replicas' errors with the same type."""
    body = encode_error(InvalidRequestError("no", param="x"))
    envelope = msgspec.json.decode(body, type=ErrorEnvelope)
    assert (envelope.error.message, envelope.error.param) == ("no", "x")
