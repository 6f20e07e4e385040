"""A server on a real socket with one endpoint that a test holds in its hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.asgi.application import Application, Ended, Endpoint
from penstock.asgi.connection import HEAD_TIMEOUT_S
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange
from penstock.asgi.server import StopRequest, bind, serve

LIMIT_S = 5


class Server:
    """POST /work sends half, waits to be let go, and sends the rest; POST /echo sends the body back."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.drain, self.stop = Drain(), StopRequest()
        self.at_work, self.let_go, self.stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.listener = bind(host, 0)
        self.port: int = self.listener.getsockname()[1]
        self.listening = asyncio.Event()

        self.ended: list[Ended] = []

    async def run(self, drain_timeout_s: float, head_timeout_s: float = HEAD_TIMEOUT_S) -> None:
        """Serves until `stop` is asked."""
        endpoints = {("POST", "/work"): Endpoint(self._handle), ("POST", "/echo"): Endpoint(self._echo)}
        application = Application(endpoints, self.drain, self.ended.append)
        await serve(
            application,
            self.listener,
            self.drain,
            self.stop,
            drain_timeout_s=drain_timeout_s,
            on_listening=self.listening.set,
            head_timeout_s=head_timeout_s,
        )
        self.stopped.set()

    async def _handle(self, exchange: Exchange) -> None:
        await exchange.start(200, [])
        await exchange.write(b"half ")
        self.at_work.set()
        await self.let_go.wait()
        await exchange.finish(b"rest")

    async def _echo(self, exchange: Exchange) -> None:
        await exchange.respond(200, await exchange.read_body(1 << 20, LIMIT_S), b"text/plain")


@asynccontextmanager
async def running(
    drain_timeout_s: float = 5.0, host: str = "127.0.0.1", head_timeout_s: float = HEAD_TIMEOUT_S
) -> AsyncIterator[Server]:
    """A server that listens; it is stopped at the end of the block."""
    server = Server(host)
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run(drain_timeout_s, head_timeout_s))
        await server.listening.wait()
        try:
            yield server
        finally:
            server.stop.ask()
            server.stop.ask()
