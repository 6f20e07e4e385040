"""Requests and answers about cached KV: /v1/kv/export, /v1/kv/import, /v1/kv/stats."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from penstock.base.errors import InvalidRequestError
from penstock.protocol.chat import ChatRequest, read_chat_request
from penstock.protocol.generation import CacheSalt, Name
from penstock.protocol.strict import read_request

ABSENT = msgspec.Raw(b"null")
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names a prompt, as a request for its answer would; null means the same as left out."""

    model: Name
    prompt: str | Annotated[list[TokenId], Meta(min_length=1)] | None = None
    messages: msgspec.Raw = ABSENT
    """As in a chat request, as are the two below; see :attr:`chat`."""
    tools: msgspec.Raw = ABSENT
    chat_template_kwargs: msgspec.Raw = ABSENT
    cache_salt: CacheSalt | None = None

    @property
    def chat(self) -> ChatRequest:
        """The chat request with these messages and tools.

        Raises:
            InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
        """
        fields = {
            "model": self.model,
            "messages": self.messages,
            "tools": self.tools,
            "chat_template_kwargs": self.chat_template_kwargs,
        }
        return read_chat_request(msgspec.json.encode(fields))


_REQUEST = msgspec.json.Decoder(ExportRequest)


def read_export_request(body: bytes) -> ExportRequest:
    """Decodes and checks an export request.

    Raises:
        InvalidRequestError, UnknownParameterError: `param` names the field.
    """
    request = read_request(body, _REQUEST, {})
    if (request.prompt is None) is (request.messages == ABSENT):
        raise InvalidRequestError("give either 'prompt' or 'messages'", param="prompt")
    if request.cache_salt is not None and request.cache_salt.startswith("\0"):
        raise InvalidRequestError(
            "what is cached under a salt that begins with a null character stays in its process",
            param="cache_salt",
        )
    return request


class ImportReply(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an archive."""

    tokens: int
    """In the archive, by its own account; 0 if it is of another engine."""
    reusable_tokens: int
    """Of them, those that a request which begins with them finds now."""
    imported_blocks: int
    known_blocks: int
    """Were cached before."""
    dropped_blocks: int
    reason: str | None
    """Why blocks were dropped; null if none was."""


class KVBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """The pool's blocks by state."""

    free: int
    cached: int
    held: int


class KVStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica keeps, and what crossed its border since it started."""

    fingerprint: dict[str, str]
    block_size: int
    """Tokens."""
    block_bytes: int
    blocks: KVBlocks
    restored_blocks: int
    imported_blocks: int
    exported_blocks: int
