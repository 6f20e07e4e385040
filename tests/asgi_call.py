"""Calls an ASGI application as a server would, without one: requests, answers, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.asgi.types import Message, Receive, Scope, Send
from penstock.protocol.sse import EventDecoder

GUARD_S = 30  # only a hanging application gets here


@dataclass(frozen=True)
class Answer:
    """What the client saw."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
    is_complete: bool

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """What the error envelope holds."""
        assert set(self.json) == {"error"}
        return self.json["error"]

    @property
    def events(self) -> list[bytes]:
        """The data of a stream's events."""
        return [event.data for event in EventDecoder().feed(self.body)]


class Call:
    """One request under way."""

    def __init__(
        self,
        application: Any,
        method: str,
        path: str,
        pieces: Sequence[bytes] | None,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """`pieces` are those of the body; None sends no body at all and leaves the server waiting."""
        self.sent: list[Message] = []
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        for piece in pieces or ():
            self._inbox.put_nowait({"type": "http.request", "body": piece, "more_body": True})
        if pieces is not None:
            self._inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        scope: Scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        receive: Receive = self._inbox.get
        send: Send = self._send
        self._task = asyncio.ensure_future(application(scope, receive, send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        """The client closes its connection."""
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def ended(self) -> None:
        """Waits until the application is done with the request; what it raised is raised here."""
        async with asyncio.timeout(GUARD_S):
            await self._task

    async def answer(self) -> Answer:
        """Waits for the end; see :meth:`seen`."""
        await self.ended()
        return self.seen()

    def seen(self) -> Answer:
        """What was sent; checks that the messages are a legal answer."""
        head, *bodies = self.sent
        assert head["type"] == "http.response.start"
        assert all(message["type"] == "http.response.body" for message in bodies)
        assert all(message["more_body"] for message in bodies[:-1])
        names = [name for name, _ in head["headers"]]
        assert len(set(names)) == len(names)
        headers = dict(head["headers"])
        body = b"".join(message["body"] for message in bodies)
        return Answer(head["status"], headers, body, bool(bodies) and not bodies[-1]["more_body"])
