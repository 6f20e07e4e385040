"""Serving on a real socket, and stopping with grace."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import h11
import pytest

from loop_turns import until
from penstock.asgi.server import StopRequest, bind
from penstock.base.errors import ConfigurationError
from raw_client import raw_client
from running_server import LIMIT_S, Server, running


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


@pytest.mark.parametrize("host", ["no-such-host.invalid", "256.0.0.1", "a" * 64 + ".example", "a\0b"])
def test_a_host_that_is_none_is_a_configuration_error(host: str) -> None:
    """Unknown or malformed."""
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        bind(host, 0)


def test_somebody_elses_address_is_a_configuration_error() -> None:
    """Another port would not help."""
    with pytest.raises(ConfigurationError, match="no address of this machine") as caught:
        bind("192.0.2.1", 0)
    assert caught.value.param == "server.host"
    assert "--port" not in caught.value.message


async def test_a_closed_terminal_asks_to_stop() -> None:
    """As Ctrl-C does, so that nothing is left running."""
    stop = StopRequest()
    stop.listen()
    async with asyncio.timeout(LIMIT_S):
        for number in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
            await (stop.insisted if number == signal.SIGTERM else stop.asked).wait()


def test_a_stop_request_tells_the_first_from_the_second() -> None:
    """More than two are the same as two."""
    stop = StopRequest()
    states = []
    for _ in range(3):
        stop.ask()
        states.append((stop.asked.is_set(), stop.insisted.is_set()))
    assert states == [(True, False), (True, True), (True, True)]
