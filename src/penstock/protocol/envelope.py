"""Errors on the wire: OpenAI's envelope, from and to our error tree."""

from __future__ import annotations

import msgspec

from penstock.base.errors import InternalError, PenstockError


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The inside of the envelope."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """`{"error": {...}}`, the shape that OpenAI's clients read."""

    error: ErrorBody


def encode_error(error: BaseException) -> bytes:
    """The envelope of an error. What is not ours becomes an internal error without its details."""
    known = (
        error if isinstance(error, PenstockError) else InternalError("internal error; see the server's log")
    )
    return msgspec.json.encode(
        ErrorEnvelope(
            error=ErrorBody(
                message=_printable(known.message),
                type=known.type,
                param=None if known.param is None else _printable(known.param),
                code=known.code,
            )
        )
    )


def _printable(text: str) -> str:
    """Without lone surrogates, which file names and other bytes bring in and UTF-8 cannot hold."""
    return text.encode(errors="replace").decode()
