"""Runs an ASGI application on uvicorn until told to stop, and stops it with grace.

Shutdown, in order: new requests get 503 with Retry-After, running ones finish within the deadline, what is
left is cancelled, sockets are closed.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.asgi.drain import Drain
from penstock.asgi.types import Receive, Scope, Send
from penstock.base.errors import ConfigurationError

logger = structlog.get_logger(__name__)
BACKLOG = 2048
MAX_HEAD_BYTES = 64 << 10
# Longer than clients keep idle connections, ours included, so that they close first and no request meets a
# closing connection.
KEEP_ALIVE_S = 75
# After the drain: time for cancelled handlers to clean up, and for bytes in flight to leave.
CANCEL_GRACE_S = 2


class StopRequest:
    """Asked once: stop with grace. Asked twice: stop now. Set by signals or by the supervisor."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()

    def ask(self) -> None:
        """Asks to stop; a second call drops what still runs."""
        (self.insisted if self.asked.is_set() else self.asked).set()

    def listen(self) -> None:
        """Makes SIGINT and SIGTERM ask."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.ask)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on a request's head, which it would otherwise collect without end."""

    _is_in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        super().on_headers_complete()


class _Server(uvicorn.Server):
    """uvicorn without signal handling of its own, saying when it listens."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    def close(self) -> None:
        """Closes what is still open: clients that read too slowly, everything if serving was cancelled."""
        for listener in getattr(self, "servers", ()):
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        ConfigurationError: the address is in use, not ours, or not to be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: not even the form of a name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"cannot listen on {host}: {reason}", param="server.host") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}. "
            "Stop what uses the port, or choose another with --port",
            param="server.port",
        ) from error
    listener.setblocking(False)
    return listener


async def serve(
    application: Callable[[Scope, Receive, Send], Awaitable[None]],
    listener: socket.socket,
    drain: Drain,
    stop: StopRequest,
    *,
    drain_timeout_s: float,
    on_listening: Callable[[], None],
) -> None:
    """Serves until `stop` is asked, then drains. Returns when every connection is closed."""
    config = uvicorn.Config(
        application,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nothing here reads the client's address, so nothing may forge it
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CANCEL_GRACE_S,
    )
    server = _Server(config, on_listening)
    try:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=[listener]))
            await _either(tasks, stop.asked, serving)
            drain.begin()
            logger.info("draining", running=drain.num_running, timeout_s=drain_timeout_s)
            idle = tasks.create_task(drain.wait_idle(drain_timeout_s))
            await _either(tasks, stop.insisted, idle)
            idle.cancel()
            if drain.num_running:
                logger.warning(
                    "drain ended with requests running; they are cut off", running=drain.num_running
                )
                for running in server.server_state.tasks:
                    running.cancel()
            server.should_exit = True
    finally:
        server.close()


async def _either(tasks: asyncio.TaskGroup, event: asyncio.Event, task: asyncio.Task[object]) -> None:
    """Waits for whichever comes first; leaves the task as it is."""
    waiting = tasks.create_task(event.wait())
    await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
