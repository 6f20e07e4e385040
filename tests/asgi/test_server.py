"""Serving on a real socket, and stopping with grace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import pytest

from loop_turns import until
from penstock.asgi.application import Application, Endpoint
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange
from penstock.asgi.server import MAX_HEAD_BYTES, StopRequest, bind, serve
from penstock.base.errors import ConfigurationError
from raw_client import raw_client

LIMIT_S = 5


class Server:
    """A server whose one endpoint sends half, waits to be let go, and sends the rest."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.drain, self.stop = Drain(), StopRequest()
        self.at_work, self.let_go, self.stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.listener = bind(host, 0)
        self.port: int = self.listener.getsockname()[1]
        self.listening = asyncio.Event()

    async def run(self, drain_timeout_s: float) -> None:
        application = Application({("POST", "/work"): Endpoint(self._handle)}, self.drain, lambda ended: None)
        await serve(
            application,
            self.listener,
            self.drain,
            self.stop,
            drain_timeout_s=drain_timeout_s,
            on_listening=self.listening.set,
        )
        self.stopped.set()

    async def _handle(self, exchange: Exchange) -> None:
        await exchange.start(200, [])
        await exchange.write(b"half ")
        self.at_work.set()
        await self.let_go.wait()
        await exchange.finish(b"rest")


@asynccontextmanager
async def running(drain_timeout_s: float = 5.0, host: str = "127.0.0.1") -> AsyncIterator[Server]:
    server = Server(host)
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run(drain_timeout_s))
        await server.listening.wait()
        try:
            yield server
        finally:
            server.stop.ask()
            server.stop.ask()


async def test_a_drain_finishes_running_requests_and_refuses_new_ones() -> None:
    """The listener stays open: 503 with Retry-After tells more than a refused connection."""
    async with running() as server, raw_client(server.port) as client:
        await client.request("/work")
        await server.at_work.wait()
        server.stop.ask()
        await until(lambda: server.drain.is_draining)
        async with raw_client(server.port) as late:
            answer = await late.ask("/work")
        assert (answer.status, answer.values(b"retry-after")) == (503, [b"10"])
        assert not server.stopped.is_set()
        server.let_go.set()
        assert (await client.answer()).body == b"half rest"
        await server.stopped.wait()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


async def test_the_deadline_cuts_running_requests_off() -> None:
    """Visibly: the client reads an incomplete answer."""
    async with running(drain_timeout_s=0.01) as server, raw_client(server.port) as client:
        await client.request("/work")
        await server.at_work.wait()
        server.stop.ask()
        with pytest.raises(h11.RemoteProtocolError):
            await client.answer()
        await server.stopped.wait()
        assert server.drain.num_running == 0


async def test_asking_twice_stops_at_once() -> None:
    """Without waiting for a deadline an hour away."""
    async with running(drain_timeout_s=3600) as server, raw_client(server.port) as client:
        await client.request("/work")
        await server.at_work.wait()
        server.stop.ask()
        server.stop.ask()
        with pytest.raises(h11.RemoteProtocolError):
            await client.answer()
        await server.stopped.wait()


async def test_an_idle_server_stops_and_closes_kept_connections() -> None:
    """Clients that only keep their connection do not hold a shutdown up."""
    async with running(drain_timeout_s=3600) as server, raw_client(server.port) as client:
        assert (await client.ask("/nowhere")).status == 404
        server.stop.ask()
        assert await client.reader.read() == b""
        await server.stopped.wait()


async def test_cancelling_it_closes_its_sockets() -> None:
    """A process that fails elsewhere leaves neither listener nor connections behind."""
    server = Server()
    async with asyncio.timeout(LIMIT_S):
        serving = asyncio.ensure_future(server.run(5))
        await server.listening.wait()
        async with raw_client(server.port) as client:
            await client.request("/work")
            await server.at_work.wait()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            with pytest.raises(h11.RemoteProtocolError):
                await client.answer()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


@pytest.mark.parametrize("beginning", [b"GET / HTTP/1.1\r\nx: ", b"GET /"], ids=["header", "path"])
async def test_an_endless_head_is_refused(beginning: bytes) -> None:
    """Or one client could fill the memory before any limit on bodies applies."""
    async with running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(beginning)
        sent = 0
        try:
            while sent < 64 * MAX_HEAD_BYTES:
                writer.write(b"x" * 4096)
                sent += 4096
                await writer.drain()
        except ConnectionError:
            pass
        assert sent < 64 * MAX_HEAD_BYTES or not (await reader.read()).startswith(b"HTTP/1.1 2")
        writer.transport.abort()


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\n"
     b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", b"GET http:// HTTP/1.1\r\n\r\n"],
)  # fmt: skip
async def test_what_is_not_http_is_refused(garbage: bytes) -> None:
    """And the server goes on."""
    async with running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(garbage)
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.transport.abort()
        async with raw_client(server.port) as client:
            assert (await client.ask("/nowhere")).status == 404


async def test_it_serves_on_ipv6() -> None:
    """A host may be an IPv6 address."""
    async with running(host="::1") as server, raw_client(server.port, "::1") as client:
        assert (await client.ask("/nowhere")).status == 404


def test_a_port_in_use_is_a_configuration_error() -> None:
    """Which names the port and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"127.0.0.1:{port}.*in use.*--port") as caught:
            bind("127.0.0.1", port)
        assert caught.value.param == "server.port"


@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", "256.0.0.1", "a" * 64 + ".example", "a\0b", "192.0.2.1"]
)
def test_a_host_that_is_not_ours_is_a_configuration_error(host: str) -> None:
    """Unknown, malformed, or somebody else's address."""
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        bind(host, 0)


def test_a_stop_request_tells_the_first_from_the_second() -> None:
    """More than two are the same as two."""
    stop = StopRequest()
    states = []
    for _ in range(3):
        stop.ask()
        states.append((stop.asked.is_set(), stop.insisted.is_set()))
    assert states == [(True, False), (True, True), (True, True)]
