"""An ASGI server's side of one request, played by hand: what the client sends, and when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from penstock.asgi.types import Message, Scope


class ScriptedClient:
    """Gives body pieces, then waits; `leave` disconnects. Keeps what the application sent.

    As the servers do, it tells of a disconnect again and again, also after a whole answer, and drops what
    is sent to a client that has left.
    """

    def __init__(self, *pieces: bytes, stalls: bool = False) -> None:
        """With `stalls` the last piece is not the body's last: more would have to come."""
        self._messages: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": stalls or number < len(pieces)}
            for number, piece in enumerate(pieces or (b"",), start=1)
        ]
        self._ended = asyncio.Event()
        self.has_left = False
        self.sent: list[Message] = []

    def leave(self) -> None:
        """The client closes its connection."""
        self.has_left = True
        self._ended.set()

    async def receive(self) -> Message:
        """See ASGI."""
        if self._messages and not self.has_left:
            return self._messages.pop(0)
        await self._ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if self.has_left:
            return
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message["more_body"]:
            self._ended.set()

    @property
    def statuses(self) -> list[int]:
        """Of the answers that began; more than one would be a defect."""
        return [message["status"] for message in self.sent if message["type"] == "http.response.start"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Of the answer."""
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        """What arrived of the answer's body."""
        return b"".join(message["body"] for message in self.sent if message["type"] == "http.response.body")

    @property
    def is_whole(self) -> bool:
        """True if the answer came to its end."""
        return bool(self.sent) and self.sent[-1].get("more_body") is False


def http_scope(method: str = "POST", path: str = "/", headers: Sequence[tuple[bytes, bytes]] = ()) -> Scope:
    """A scope as a server makes it."""
    return {"type": "http", "method": method, "path": path, "headers": list(headers)}
