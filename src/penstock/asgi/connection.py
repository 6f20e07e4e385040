"""uvicorn's side of one connection, with what that lacks: bounds on a request's head, errors in our form."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from penstock.base.errors import ClientError, RequestTimeoutError
from penstock.base.ids import new_id
from penstock.protocol.envelope import encode_error

logger = structlog.get_logger(__name__)
MAX_HEAD_BYTES = 64 << 10
# For a whole head: from connecting, on a kept connection from the head's first byte. A body has a limit of
# its own, and a connection that waits for its next request another (uvicorn's keep-alive).
HEAD_TIMEOUT_S = 20.0
# What asks for another protocol; without it a request is an ordinary one.
_UPGRADE_HEADERS = frozenset({b"upgrade", b"http2-settings"})


class ServerConnection(HttpToolsProtocol):
    """Reads requests and hands them to the application."""

    head_timeout_s = HEAD_TIMEOUT_S

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_in_head = False
        self._is_upgrading = False
        self._head_bytes = 0
        self._head_limit: asyncio.TimerHandle | None = None
        self._cycles: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._unlimit_head()
        # uvicorn tells only the newest request; with pipelining the one that is answered may be an older one.
        for cycle in self._unanswered():
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("the request is not valid HTTP")
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"the request's head is larger than {MAX_HEAD_BYTES} bytes")
                return
        if self._is_in_head or not self._unanswered():  # the latter: empty lines before a request
            self._limit_head()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP, in the form of any other refusal, and closes the connection."""
        self._refuse(ClientError(msg))

    # httptools callbacks

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._is_in_head = False
        self._head_bytes = 0
        self._unlimit_head()
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._is_upgrading = True
            return
        super().on_headers_complete()
        self._cycles = [*self._unanswered(), self.cycle]

    def on_message_complete(self) -> None:
        """See httptools."""
        if not self._is_upgrading:
            super().on_message_complete()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._is_upgrading:
                raise httptools.HttpParserError("CONNECT is not for servers") from upgrade
            # The parser takes what follows for another protocol. We speak none, and RFC 9110 lets a server
            # ignore the wish (Java's client sends it with every request): the request is read again without.
            head = self._encode_head()
            self._is_upgrading = False
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self.parser.feed_data(head)
            rest: int = upgrade.args[0]
            self._feed(data[rest:])

    def _encode_head(self) -> bytes:
        """The head just read, without its wish for another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() != b"upgrade"]
                value = b",".join(tokens)
            if name not in _UPGRADE_HEADERS:
                lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join([*lines, b"\r\n"])

    def _unanswered(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    def _limit_head(self) -> None:
        if self._head_limit is None:
            self._head_limit = self.loop.call_later(self.head_timeout_s, self._end_head)

    def _unlimit_head(self) -> None:
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None

    def _end_head(self) -> None:
        """The head did not come in time."""
        self._head_limit = None
        if self.transport.is_closing():
            return
        if self._unanswered():  # answers go first: reading may even have stopped for their sake
            self._limit_head()
        elif self._is_in_head:
            self._refuse(
                RequestTimeoutError(f"the request's head did not arrive within {self.head_timeout_s:g} s")
            )
        else:
            self.transport.close()

    def _refuse(self, error: ClientError) -> None:
        if any(cycle.response_started for cycle in self._unanswered()):
            self.transport.close()  # in the middle of an answer nothing else can be said
            return
        request_id, body = new_id("req"), encode_error(error)
        logger.info(
            "request", request_id=request_id, status=error.status, error=error.code, message=error.message
        )
        headers = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[error.status] + headers.encode() + body)
        self.transport.close()


def connection_class(head_timeout_s: float) -> type[ServerConnection]:
    """The class with another time for heads; uvicorn makes the objects and passes no such thing on."""

    class Limited(ServerConnection):
        """See above."""

    Limited.head_timeout_s = head_timeout_s
    return Limited
