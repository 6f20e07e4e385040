"""One HTTP/1.1 connection to a replica: one request at a time, its answer in pieces, with back-pressure.

State changes happen synchronously in the protocol's callbacks; whoever waits is woken afterwards. A reader
that is slow stops the transport, so at most HIGH_WATER bytes and one read wait here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import cast

import httptools

from penstock.base.errors import UpstreamError, UpstreamProtocolError

HIGH_WATER = 256 << 10
LOW_WATER = 64 << 10
MAX_HEAD_BYTES = 64 << 10
MAX_STATUS = 599


@dataclass(slots=True)
class Head:
    """Status and headers of an answer, names in lower case."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """Send with :meth:`send`, then :meth:`read_head`, then :meth:`read` until it returns None."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head = Head()
        self._overhead_bytes = 0
        self._has_head = False
        self._ends_by_close = False
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._num_body_bytes = 0
        self._is_paused = False
        self._is_write_paused = False
        self._news = asyncio.Event()
        self._failure: UpstreamError | None = None
        self.is_complete = True
        """No answer is outstanding: before a request, and after the last byte of its answer."""
        self.is_closed = False
        self.has_received = False
        """A byte of the current answer has arrived."""
        self.idle_since = 0.0

    @property
    def can_be_reused(self) -> bool:
        """True if another request may be sent on it: nothing of the last one is under way, either way."""
        return (
            self.is_complete
            and not self.is_closed
            and not self._chunks
            and self._transport is not None
            and self._transport.get_write_buffer_size() == 0
        )

    async def send(self, request: bytes, body: bytes) -> None:
        """Sends a request; waits while the replica reads too slowly, unless it answers before reading all.

        Raises:
            UpstreamProtocolError: the connection ended first.
        """
        assert self._transport is not None
        assert self.can_be_reused
        self._parser = httptools.HttpResponseParser(self)
        self._head, self._overhead_bytes, self._has_head = Head(), 0, False
        self._ends_by_close = False
        self.is_complete = self.has_received = False
        self._transport.writelines((request, body) if body else (request,))
        while self._is_write_paused and not self._has_head:
            self._raise_failure()
            await self._wait()
        self._raise_failure()

    async def read_head(self) -> Head:
        """The answer's status and headers.

        Raises:
            UpstreamProtocolError: the connection ended first, or it is not HTTP.
        """
        while not self._has_head:
            self._raise_failure()
            await self._wait()
        return self._head

    async def read(self) -> bytes | None:
        """The body bytes that have arrived, at least one; None after the last.

        Raises:
            UpstreamProtocolError: the connection ended before the answer did, or the framing is broken.
        """
        while not self._chunks:
            if self.is_complete:
                return None
            self._raise_failure()
            await self._wait()
        data = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
        self._chunks.clear()
        self._buffered = 0
        if self._is_paused and self._transport is not None and not self.is_closed:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def abort(self) -> None:
        """Closes at once, without sending what waits; the replica sees its client leave."""
        if self._transport is not None and not self.is_closed:
            self.is_closed = True
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.is_complete:  # bytes nobody asked for: the connection is out of step
            self.abort()
            return
        self.has_received = True
        before = self._num_body_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break_off(f"the replica's answer is not valid HTTP: {error}")
        if self._num_body_bytes > before:
            self._overhead_bytes = 0
        else:  # a head, or trailers; chunk sizes without chunks
            self._overhead_bytes += len(data)
            if self._overhead_bytes > MAX_HEAD_BYTES:
                self._break_off(f"the answer's head is larger than {MAX_HEAD_BYTES} bytes")
        if self._buffered > HIGH_WATER and not self._is_paused and not self.is_closed:
            assert self._transport is not None
            self._transport.pause_reading()
            self._is_paused = True
        self._news.set()

    def eof_received(self) -> bool:
        """See asyncio; False lets the transport close."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        if self._has_head and self._ends_by_close and error is None and not self.is_closed:
            self.is_complete = True  # the replica ended it, not we
        self.is_closed = True
        if not self.is_complete and self._failure is None:
            detail = f": {error}" if error else ""
            where = "in the middle of" if self.has_received else "before"
            self._failure = UpstreamProtocolError(
                f"the replica closed the connection {where} its answer{detail}"
            )
        self._news.set()

    def pause_writing(self) -> None:
        """See asyncio."""
        self._is_write_paused = True

    def resume_writing(self) -> None:
        """See asyncio."""
        self._is_write_paused = False
        self._news.set()

    # httptools callbacks. After the answer's last byte they take nothing more: a second answer in the same
    # read must not become part of the first.

    def on_message_begin(self) -> None:
        """See httptools."""
        if self.is_complete:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools; headers after the body (trailers) are dropped."""
        if not self._has_head:
            self._head.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self.is_complete:
            return
        self._head.status = self._parser.get_status_code()
        if self._head.status < 200:  # 100 Continue, 103 Early Hints: the answer is still to come
            self._head = Head()
            return
        if self._head.status > MAX_STATUS:
            self._break_off(f"the replica's answer has the status {self._head.status}")
            return
        names = {name for name, _ in self._head.headers}
        self._ends_by_close = not names & {b"content-length", b"transfer-encoding"}
        self._has_head = True

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        if not self.is_complete:
            self._chunks.append(data)
            self._buffered += len(data)
            self._num_body_bytes += len(data)

    def on_message_complete(self) -> None:
        """See httptools."""
        if not self._has_head or self.is_complete:
            return
        self.is_complete = True
        if not self._parser.should_keep_alive():
            self.abort()

    def _break_off(self, reason: str) -> None:
        """Fails the answer, unless it is complete, and closes the connection."""
        if self._failure is None and not self.is_complete:
            self._failure = UpstreamProtocolError(reason)
        self.abort()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()
