"""One HTTP request and its one answer, over ASGI.

An exchange knows whether its answer has begun, so an error can never become a second answer, and how it
ended, so that it is counted once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence

from penstock.asgi.types import Message, Receive, Scope, Send
from penstock.base.errors import BodyTooLargeError, ClientGoneError, RequestTimeoutError
from penstock.base.ids import new_id

Headers = Sequence[tuple[bytes, bytes]]
JSON = b"application/json"
# What a client may choose as its own request id: visible ASCII of reasonable length.
_CLIENT_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Exchange:
    """Request in, answer out. Not for use by two tasks at once, but for :meth:`wait_gone`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        """What follows the question mark, as it was sent."""
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._is_body_read = False
        self.status: int | None = None
        self.is_complete = False
        """True once the last byte of the answer was handed over."""
        self._request_id = self._choose_request_id()
        self.log_fields: dict[str, object] = {}
        """What handlers add to the request's log line; `error` is the code of an error told in band."""

    @property
    def request_id(self) -> str:
        """The client's x-request-id where it is usable, else a new one; sent back with every answer."""
        return self._request_id

    @property
    def has_started(self) -> bool:
        """True once status and headers were sent."""
        return self.status is not None

    async def read_body(self, max_bytes: int, timeout_s: float) -> bytes:
        """The whole request body.

        Raises:
            BodyTooLargeError: over `max_bytes`, declared or sent.
            RequestTimeoutError: not all there within `timeout_s` seconds.
            ClientGoneError: the client left while sending.
        """
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > max_bytes:
            raise self._too_large(max_bytes)
        chunks, size = [], 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    message = await self._next_message()
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size > max_bytes:
                        raise self._too_large(max_bytes)
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError as error:
            raise RequestTimeoutError(f"the body did not arrive within {timeout_s:g} s") from error

    async def read_chunk(self, timeout_s: float) -> bytes | None:
        """The next part of a request body that is too large to be held whole; None after the last.

        Raises:
            RequestTimeoutError: nothing came within `timeout_s` seconds.
            ClientGoneError: the client left while sending.
        """
        while not self._is_body_read:
            try:
                async with asyncio.timeout(timeout_s):
                    message = await self._next_message()
            except TimeoutError as error:
                raise RequestTimeoutError(f"no part of the body arrived for {timeout_s:g} s") from error
            self._is_body_read = not message.get("more_body", False)
            if chunk := message.get("body", b""):
                return bytes(chunk)
        return None

    async def wait_gone(self) -> None:
        """Returns when the client has left. Call it only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()
    ) -> None:
        """Sends a whole answer."""
        await self.start(
            status,
            [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers],
        )
        await self.finish(b"" if self.method == "HEAD" else body)

    async def start(self, status: int, headers: Headers) -> None:
        """Sends status and headers, x-request-id added.

        Raises, as all that send: ClientGoneError if the client has left.
        """
        assert self.status is None, "an exchange has one answer"
        self.status = status
        own = (b"x-request-id", self._request_id.encode())
        await self._deliver({"type": "http.response.start", "status": status, "headers": [*headers, own]})

    async def write(self, chunk: bytes) -> None:
        """Sends a part of the body; waits while the client reads too slowly."""
        await self._deliver({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self, chunk: bytes = b"") -> None:
        """Sends the last part of the body."""
        await self._deliver({"type": "http.response.body", "body": chunk, "more_body": False})
        self.is_complete = True

    async def _deliver(self, message: Message) -> None:
        try:
            await self._send(message)
        except (RuntimeError, OSError) as error:  # what event loops say of a connection that is closed
            raise ClientGoneError(f"the answer could not be sent: {error}") from error

    async def _next_message(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left while sending its request")
        return message

    def _choose_request_id(self) -> str:
        given = self.headers.get(b"x-request-id", b"")
        return given.decode() if _CLIENT_REQUEST_ID.fullmatch(given) else new_id("req")

    @staticmethod
    def _too_large(max_bytes: int) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body is larger than the limit of {max_bytes} bytes")


async def unless_gone(exchange: Exchange, work: Coroutine[object, object, None]) -> None:
    """Runs `work`, which answers the exchange; cancels it when the client leaves first.

    Raises:
        ClientGoneError: the client left before its answer was complete.
    """
    failure: Exception | None = None
    is_gone = False

    async def guarded() -> None:
        nonlocal failure
        try:
            await work
        except Exception as error:  # noqa: BLE001 (carried out of the task group, raised below)
            failure = error

    try:
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(guarded())
            leaving = tasks.create_task(exchange.wait_gone())
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            is_gone = not working.done()
            working.cancel()
            leaving.cancel()
    finally:
        work.close()  # it has not begun if we were cancelled at once; else this does nothing
    if failure is not None:
        raise failure
    if is_gone and not exchange.is_complete:
        raise ClientGoneError("the client left before its answer was complete")
