"""The line between supervisor and child: messages both ways, and each notices when the other is gone.

It is one end each of a socket pair. The kernel closes an end when its process dies, however it dies, so no
child outlives its supervisor and no supervisor waits for a dead child. A message is one line of JSON.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import msgspec
import structlog

from penstock.base.errors import PenstockError
from penstock.fleet.orders import MakeRoom, Message, ModelState, Roster, Unload, Wake

logger = structlog.get_logger(__name__)

# A line that is longer, or this much that the other end does not read, means that the other end is broken.
MAX_LINE_BYTES = 4 << 20
MAX_UNREAD_BYTES = 16 << 20
# Of an engine's reason for not starting, which is shown to clients.
MAX_REASON = 1000


class Ready(Message, frozen=True):
    """From a child: it serves."""


class Planned(Message, frozen=True):
    """From an engine, before it loads its model: the bytes it will take, itself included."""

    num_bytes: int
    description: str


class Granted(Message, frozen=True):
    """To an engine: there is room, load."""


class Failed(Message, frozen=True):
    """From an engine: why it cannot serve. It ends after this."""

    reason: str


FromChild = Ready | Planned | Failed | Wake | Unload
ToChild = Granted | Roster | ModelState | MakeRoom
FROM_CHILD: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)
TO_CHILD: msgspec.json.Decoder[ToChild] = msgspec.json.Decoder(ToChild)
Received = TypeVar("Received")


class Link(Generic[Received]):
    """One end, on the running loop; use :meth:`open`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: msgspec.json.Decoder[Received],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder

    @staticmethod
    async def open(end: socket.socket, decoder: msgspec.json.Decoder[Received]) -> Link[Received]:
        """Takes over a connected socket; `decoder` reads what the other end sends."""
        end.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=MAX_LINE_BYTES)
        return Link(reader, writer, decoder)

    def send(self, message: Message) -> None:
        """Sends a message without waiting; one to an end that is gone is dropped, as `receive` will tell."""
        if self._writer.is_closing():
            return
        self._writer.write(_encode(message))
        if self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            logger.error("the other end of a link does not read; it is closed")
            self._writer.transport.abort()

    async def receive(self) -> Received | None:
        """The next message; None when the other end is gone or sent what is no message."""
        try:
            line = await self._reader.readline()
            return self._decoder.decode(line) if line.endswith(b"\n") else None
        except OSError:
            return None
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors; so is a long line
            logger.error("the other end of a link sent what is no message", error=str(error))
            return None

    async def listen(self, on_message: Callable[[Received], None], on_gone: Callable[[], None]) -> None:
        """Hands each message on until the other end is gone."""
        while (message := await self.receive()) is not None:
            on_message(message)
        on_gone()

    def close(self) -> None:
        """Gives up our end, which the other end notices."""
        self._writer.close()


@contextmanager
def failure_told(descriptor: int | None) -> Iterator[None]:
    """Tells the supervisor at the other end of `descriptor`, if any, of the error that leaves the block."""
    spare = None if descriptor is None else os.dup(descriptor)  # the loop closes its own before we get here
    try:
        yield
    except PenstockError as error:
        if spare is not None:
            # A folder's name need not be text; what cannot be encoded must not hide the error itself.
            reason = error.message[:MAX_REASON].encode("utf-8", "replace").decode()
            _write(spare, Failed(reason))
        raise
    finally:
        if spare is not None:
            os.close(spare)


def _write(descriptor: int, message: Message) -> None:
    try:
        os.write(descriptor, _encode(message))
    except OSError:
        return  # the supervisor is gone and asks no more


def _encode(message: Message) -> bytes:
    return msgspec.json.encode(message) + b"\n"
