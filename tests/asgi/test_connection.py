"""What the server makes of bytes: heads that are endless, slow or not HTTP, wishes for other protocols."""

from __future__ import annotations

import asyncio
import json

import pytest

from penstock.asgi.connection import MAX_HEAD_BYTES
from raw_client import raw_client
from running_server import running


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
    """In the form of every other error, and the server goes on."""
    async with running() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(garbage)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        assert status.startswith(b"HTTP/1.1 400")
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"x-request-id"].startswith(b"req-")
        assert headers[b"connection"] == b"close"
        assert int(headers[b"content-length"]) == len(body)
        assert json.loads(body)["error"]["code"] == "invalid_request"
        writer.transport.abort()
        async with raw_client(server.port) as client:
            assert (await client.ask("/nowhere")).status == 404


@pytest.mark.parametrize(
    "beginning", [b"", b"\r\n", b"POST /echo HTTP/1.1\r\nx: "], ids=["none", "line", "half"]
)
async def test_a_slow_head_ends_its_connection(beginning: bytes) -> None:
    """Or idle clients could hold every connection there is."""
    async with running(head_timeout_s=0.01) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(beginning)
        answer = await reader.read()
        if beginning.startswith(b"POST"):
            assert answer.startswith(b"HTTP/1.1 408")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        else:
            assert answer == b""
        writer.transport.abort()


async def test_a_slow_head_on_a_kept_connection_ends_it() -> None:
    """The time counts from its first byte; before that the connection may rest."""
    async with running(head_timeout_s=0.01) as server, raw_client(server.port) as client:
        assert (await client.ask("/echo", b"a")).body == b"a"
        client.writer.write(b"POST /ec")
        assert (await client.reader.read()).startswith(b"HTTP/1.1 408")


async def test_a_head_that_came_is_no_longer_timed() -> None:
    """Not the body, not the answer, not the rest before the next request."""
    async with running(head_timeout_s=0.01) as server, raw_client(server.port) as client:
        await client.request("/work")
        await server.at_work.wait()
        client.writer.write(b"POST /ec")  # the next head begins while the answer runs
        for _ in range(3):  # the time passes, as idle connections see
            async with raw_client(server.port) as idle:
                assert await idle.reader.read() == b""
        server.let_go.set()
        assert (await client.answer()).body == b"half rest"


@pytest.mark.parametrize("wish", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_wish_for_another_protocol_is_ignored(wish: bytes, pieces: int) -> None:
    """Java's client sends one with every request; the request and its body are served as they are."""
    body = bytes(range(256)) * 40
    request = (
        b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: %d\r\n\r\n%b" % (wish, len(body), body)
    )
    async with running() as server, raw_client(server.port) as client:
        size = -(-len(request) // pieces)
        for start in range(0, len(request), size):
            client.writer.write(request[start : start + size])
            await client.writer.drain()
            await asyncio.sleep(0)
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await client.reader.readexactly(len(body)) == body
        client.writer.write(request)  # the connection is whole
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await client.reader.readexactly(len(body)) == body


async def test_a_wish_with_a_chunked_body_and_a_request_behind_it() -> None:
    """What follows the head is not lost, whatever it is."""
    both = (
        b"POST /echo HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\n\r\n"
        b"POST /echo HTTP/1.1\r\nconnection: close\r\ncontent-length: 3\r\n\r\ndef"
    )
    async with running() as server, raw_client(server.port) as client:
        client.writer.write(both)
        answers = await client.reader.read()
        assert answers.count(b"HTTP/1.1 200") == 2
        assert answers.index(b"\r\n\r\nabc") < answers.index(b"\r\n\r\ndef")


async def test_connect_is_refused() -> None:
    """It is for proxies."""
    async with running() as server, raw_client(server.port) as client:
        client.writer.write(b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n")
        assert (await client.reader.read()).startswith(b"HTTP/1.1 400")


async def test_leaving_ends_every_request_of_the_connection() -> None:
    """With pipelining the answer under way is not that of the newest request."""
    request = b"POST /work HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
    async with running() as server:
        async with raw_client(server.port) as client:
            client.writer.write(request * 2)
            await server.at_work.wait()
            client.leave()
        server.let_go.set()
        assert await server.drain.wait_idle(5)
        assert all(ended.error_code in (None, "client_gone") for ended in server.ended)
