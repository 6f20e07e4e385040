"""A replica that plays exact bytes: a raw TCP server whose connections each follow a script.

A script is an async function of a :class:`Peer`. The n-th connection plays the n-th script, later ones the
last. Whatever happens inside the `async with` block ends after LIMIT_S seconds, so a hang is a failure.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

LIMIT_S = 10.0


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire."""

    line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header."""
        return [value for key, value in self.headers if key == name]


class Peer:
    """One connection, seen from the replica."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.requests: list[Request] = []

    async def request(self) -> Request:
        """Reads one whole request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        headers = [(key.lower(), value) for key, _, value in (entry.partition(b": ") for entry in lines)]
        size = int(dict(headers).get(b"content-length", b"0"))
        request = Request(line, headers, await self.reader.readexactly(size))
        self.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, data: bytes) -> Request:
        """Reads a request, then sends bytes."""
        request = await self.request()
        await self.send(data)
        return request

    async def gone(self) -> None:
        """Returns when the other side has closed."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            return

    def close(self) -> None:
        """Ends the connection in order."""
        self.writer.close()

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


def answering(*answers: bytes) -> Script:
    """A script that answers one request after the other, the last answer for ever, on a kept connection."""

    async def script(peer: Peer) -> None:
        number = 0
        while True:
            await peer.answer(answers[min(number, len(answers) - 1)])
            number += 1

    return script


def answering_once(answer: bytes) -> Script:
    """A script that answers one request and ends the connection."""

    async def script(peer: Peer) -> None:
        await peer.answer(answer)

    return script


async def silent(peer: Peer) -> None:
    """A script that reads all and says nothing."""
    await peer.gone()


def whole(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    """An answer with a content-length."""
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), headers, body)


def chunked(*chunks: bytes, headers: bytes = b"", end: bytes = b"0\r\n\r\n") -> bytes:
    """A chunked answer."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n%b\r\n%b%b" % (headers, framed, end)


healthy = answering_once(whole(b"{}", headers=b"connection: close\r\n"))


class ScriptedUpstream:
    """The server; `peers` are its connections in the order in which they came."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit = asyncio.timeout(LIMIT_S)
        self.peers: list[Peer] = []
        self.ended: list[asyncio.Event] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._limit.__aexit__(kind, error, trace)

    def refuse(self) -> None:
        """From now on connections are refused, as if the process were dead."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer)
        script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
        self.peers.append(peer)
        self.ended.append(ended := asyncio.Event())
        try:
            await script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the gateway left in the middle, or the test is over
        finally:
            writer.close()
            ended.set()
            self._tasks.discard(task)
