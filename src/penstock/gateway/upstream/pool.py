"""Connections to one replica: kept alive, bounded, and never left in doubt.

A request borrows a connection inside `async with pool.request(...)`; leaving the block gives it back if its
answer was read to the end, and closes it otherwise, which is how the replica learns that nobody waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from penstock.base.errors import (
    CapacityError,
    UpstreamConnectError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.connection import Connection

RETRY_AFTER_S = 1
# A kept connection that was closed while idle fails within a round trip of being used. One that lives longer
# carried the request to the replica, which may be working on it: a second time would be billed twice.
REPLAY_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a replica. `path` starts with a slash; `headers` are without host and content-length."""

    method: str
    path: str
    headers: Iterable[tuple[bytes, bytes]] = ()
    body: bytes = b""

    def encode_head(self, authority: str) -> bytes:
        """Request line and headers."""
        lines = [f"{self.method} {self.path} HTTP/1.1\r\nhost: {authority}\r\n".encode()]
        lines += [b"%b: %b\r\n" % header for header in self.headers]
        if self.body or self.method == "POST":
            lines.append(b"content-length: %d\r\n" % len(self.body))
        lines.append(b"\r\n")
        return b"".join(lines)


class Answer:
    """A replica's answer: status and headers, then the body in pieces as they arrive."""

    def __init__(
        self, connection: Connection, status: int, headers: list[tuple[bytes, bytes]], gap_s: float
    ) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._gap_s = gap_s

    async def read(self) -> bytes | None:
        """The next piece of the body, None after the last.

        Raises:
            UpstreamProtocolError: the answer was cut or is broken.
            UpstreamTimeoutError: the replica was silent for too long.
        """
        try:
            async with asyncio.timeout(self._gap_s):
                return await self._connection.read()
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"the replica sent nothing for {self._gap_s:g} s") from error


class Pool:
    """Connections to one address, for one event loop."""

    def __init__(
        self,
        host: str,
        port: int,
        authority: str,
        settings: UpstreamSettings,
        replay_within_s: float = REPLAY_WITHIN_S,
    ) -> None:
        self.host = host
        self.port = port
        self.authority = authority
        self._settings = settings
        self._replay_within_s = replay_within_s
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._num_opening = 0

    @property
    def num_busy(self) -> int:
        """Requests in flight."""
        return len(self._busy) + self._num_opening

    @property
    def num_idle(self) -> int:
        """Open connections without a request."""
        return sum(connection.can_be_reused for connection in self._idle)

    @asynccontextmanager
    async def request(self, call: Call) -> AsyncIterator[Answer]:
        """Sends a call and gives its answer, head read, body to be read.

        A kept-alive connection that is lost at once, before one byte of answer, was closed while idle: it is
        replaced and the request sent again, once. Nothing else is ever sent twice.

        Raises:
            CapacityError: all connections are in use.
            UpstreamConnectError, UpstreamProtocolError, UpstreamTimeoutError: the replica failed.
        """
        connection = self._take_idle()
        is_fresh = connection is None
        if connection is None:
            connection = await self._open()
        now = asyncio.get_running_loop().time
        sent_at = now()
        try:
            try:
                answer = await self._exchange(connection, call)
            except UpstreamProtocolError:
                is_late = now() - sent_at >= self._replay_within_s
                if is_fresh or is_late or connection.has_received:
                    raise
                self._release(connection)
                connection = await self._open()
                answer = await self._exchange(connection, call)
            yield answer
        finally:
            self._release(connection)

    def close(self) -> None:
        """Closes every connection; requests in flight fail."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    async def _exchange(self, connection: Connection, call: Call) -> Answer:
        limit = self._settings.first_byte_timeout_s
        try:
            async with asyncio.timeout(limit):
                await connection.send(call.encode_head(self.authority), call.body)
                head = await connection.read_head()
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"the replica did not answer within {limit:g} s") from error
        return Answer(connection, head.status, head.headers, self._settings.gap_timeout_s)

    def _take_idle(self) -> Connection | None:
        """The connection used last, so that the others can expire."""
        now = asyncio.get_running_loop().time()
        while self._idle and now - self._idle[0].idle_since > self._settings.idle_expiry_s:
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.can_be_reused:
                self._busy.add(connection)
                return connection
        return None

    async def _open(self) -> Connection:
        if self.num_busy >= self._settings.max_connections:
            raise CapacityError(
                f"all {self._settings.max_connections} connections to the replica are in use",
                retry_after_s=RETRY_AFTER_S,
            )
        limit = self._settings.connect_timeout_s
        self._num_opening += 1
        try:
            async with asyncio.timeout(limit):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, self.host, self.port
                )
        except TimeoutError as error:
            raise UpstreamConnectError(
                f"the replica did not accept a connection within {limit:g} s"
            ) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: not even the form of a host's name
            reason = error.strerror if isinstance(error, OSError) else None
            raise UpstreamConnectError(f"cannot connect to the replica: {reason or error}") from error
        finally:
            self._num_opening -= 1
        self._busy.add(connection)
        return connection

    def _release(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection.can_be_reused:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.abort()
