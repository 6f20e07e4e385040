"""Runs an ASGI application on uvicorn until told to stop, and stops it with grace.

Shutdown, in order: new requests get 503 with Retry-After, running ones finish within the deadline, what is
left is cancelled, sockets are closed.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog
import uvicorn

from penstock.asgi.connection import HEAD_TIMEOUT_S, connection_class
from penstock.asgi.drain import Drain
from penstock.asgi.types import Receive, Scope, Send
from penstock.base.errors import ConfigurationError

logger = structlog.get_logger(__name__)
BACKLOG = 2048
# Longer than clients keep idle connections, ours included, so that they close first and no request meets a
# closing connection.
KEEP_ALIVE_S = 75
# After the drain: time for cancelled handlers to clean up, and for bytes in flight to leave.
CANCEL_GRACE_S = 2
# What to do about it, and the key to change.
_BIND_HINTS: dict[int | None, tuple[str, str]] = {
    errno.EADDRINUSE: (". Stop what uses the port, or choose another with --port", "server.port"),
    errno.EADDRNOTAVAIL: (". It is no address of this machine; choose one with --host", "server.host"),
    errno.EACCES: (". Ports below 1024 need special rights; choose another with --port", "server.port"),
}


class StopRequest:
    """Asked once: stop with grace. Asked twice: stop now. Set by signals or by the supervisor."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()

    def ask(self) -> None:
        """Asks to stop; a second call drops what still runs."""
        (self.insisted if self.asked.is_set() else self.asked).set()

    def listen(self) -> None:
        """Makes SIGINT, SIGTERM and SIGHUP (the terminal was closed) ask."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it must stay ignored
            numbers.append(signal.SIGHUP)
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, self.ask)


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
        hint, param = _BIND_HINTS.get(error.errno, ("", "server.port"))
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}{hint}", param=param
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
    head_timeout_s: float = HEAD_TIMEOUT_S,
) -> None:
    """Serves until `stop` is asked, then drains. Returns when every connection is closed.

    A connection that has no whole request head after `head_timeout_s` is closed.
    """
    config = uvicorn.Config(
        application,
        http=connection_class(head_timeout_s),
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
