"""An HTTP client that sees what is on the wire; h11 parses, so an answer cut short is an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer."""

    status: int
    headers: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header."""
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True)
class Answer(Head):
    """A whole answer."""

    body: bytes


class RawClient:
    """One connection; use :func:`raw_client`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._state = h11.Connection(h11.CLIENT)

    async def request(
        self, path: str, body: bytes = b"", method: str = "POST", headers: Headers = ()
    ) -> None:
        """Sends a request."""
        if self._state.our_state is h11.DONE:
            self._state.start_next_cycle()
        lines = [(b"host", b"penstock"), (b"content-length", str(len(body)).encode()), *headers]
        data = self._state.send(h11.Request(method=method, target=path, headers=lines)) or b""
        data += self._state.send(h11.Data(data=body)) or b""
        data += self._state.send(h11.EndOfMessage()) or b""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Head:
        """The answer's head."""
        event = await self._event()
        assert isinstance(event, h11.Response), event
        return Head(event.status_code, [(bytes(name), bytes(value)) for name, value in event.headers])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises h11.RemoteProtocolError if it is cut."""
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            yield bytes(event.data)

    async def piece(self) -> bytes:
        """The next bytes of the body."""
        event = await self._event()
        assert isinstance(event, h11.Data), event
        return bytes(event.data)

    async def answer(self) -> Answer:
        """A whole answer. Raises h11.RemoteProtocolError if it is cut."""
        head = await self.head()
        body = b"".join([piece async for piece in self.pieces()])
        return Answer(head.status, head.headers, body)

    async def ask(self, path: str, body: bytes = b"", method: str = "POST", headers: Headers = ()) -> Answer:
        """Sends a request and reads the answer."""
        await self.request(path, body, method, headers)
        return await self.answer()

    def leave(self) -> None:
        """Closes the connection, whatever is under way."""
        self.writer.transport.abort()

    async def _event(self) -> h11.Event:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            try:
                data = await self.reader.read(65_536)
            except ConnectionError:
                data = b""
            self._state.receive_data(data)
        assert not isinstance(event, type), event
        return event


@asynccontextmanager
async def raw_client(port: int, host: str = "127.0.0.1") -> AsyncIterator[RawClient]:
    """A connection to a server on this machine."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
