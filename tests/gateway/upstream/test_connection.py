"""One connection against a replica that plays exact bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from penstock.base.errors import UpstreamError, UpstreamProtocolError
from penstock.gateway.upstream.connection import HIGH_WATER, MAX_HEAD_BYTES, Connection
from scripted_upstream import Peer, Script, ScriptedUpstream, answering, chunked, silent, whole

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
# The selector loop reads 256 KiB at a time, so this much may arrive after the transport was told to pause.
ONE_READ = 256 << 10


@asynccontextmanager
async def connected(*scripts: Script) -> AsyncIterator[tuple[Connection, ScriptedUpstream]]:
    async with ScriptedUpstream(*scripts) as upstream:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", upstream.port)
        try:
            yield connection, upstream
        finally:
            connection.abort()


async def read_all(connection: Connection) -> bytes:
    pieces = []
    while (piece := await connection.read()) is not None:
        assert piece
        pieces.append(piece)
    return b"".join(pieces)


async def ask(connection: Connection) -> bytes:
    await connection.send(REQUEST, b"")
    await connection.read_head()
    return await read_all(connection)


def playing(*pieces: bytes) -> Script:
    """Answers one request with pieces, each sent when the one before has left, then ends the connection."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
            await asyncio.sleep(0)  # to the other side of the socket, so that reads are as small as can be

    return script


ANSWERS = {
    "whole": (whole(b"hello"), b"hello"),
    "empty": (whole(b""), b""),
    "chunked": (chunked(b"hel", b"lo"), b"hello"),
    "trailers": (chunked(b"hello", end=b"0\r\nx-checksum: 1\r\n\r\n"), b"hello"),
    "chunk-extension": (chunked(end=b"5;name=value\r\nhello\r\n0\r\n\r\n"), b"hello"),
    "until-close": (b"HTTP/1.1 200 OK\r\n\r\nhello", b"hello"),
    "http-1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    "no-content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"hello"), b"hello"),
    "early-hints": (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + chunked(b"hello"), b"hello"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_read_to_its_end(name: str) -> None:
    """Every framing of RFC 9112 gives the same body."""
    answer, body = ANSWERS[name]
    async with connected(playing(answer)) as (connection, _):
        assert await ask(connection) == body
        assert connection.is_complete


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_split_into_bytes_is_the_same(name: str) -> None:
    """Where reads happen to end changes nothing."""
    answer, body = ANSWERS[name]
    async with connected(playing(*(bytes([byte]) for byte in answer))) as (connection, _):
        assert await ask(connection) == body


@pytest.mark.parametrize("name", ["whole", "chunked", "trailers", "continue"])
async def test_an_answer_cut_anywhere_is_an_error(name: str) -> None:
    """Truncation must never look like an end: cut at every offset, in order and by reset."""
    answer, _ = ANSWERS[name]
    for offset in range(len(answer)):
        for ends in (Peer.close, Peer.reset):

            async def script(peer: Peer, ends=ends, data: bytes = answer[:offset]) -> None:
                await peer.answer(data)
                ends(peer)

            async with connected(script) as (connection, _):
                with pytest.raises(UpstreamProtocolError):
                    await ask(connection)
                assert not connection.can_be_reused


async def test_an_answer_until_close_that_is_reset_is_an_error() -> None:
    """Only an orderly end delimits a body; a reset is a crash."""
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await arrived.wait()
        peer.reset()

    async with connected(script) as (connection, _):
        await connection.send(REQUEST, b"")
        await connection.read_head()
        assert await connection.read() == b"hel"
        arrived.set()
        with pytest.raises(UpstreamProtocolError):
            await connection.read()


async def test_our_own_abort_is_no_end_of_an_answer_until_close() -> None:
    """Shutting the pool down must not turn half an answer into a whole one."""

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await peer.gone()

    async with connected(script) as (connection, _):
        await connection.send(REQUEST, b"")
        await connection.read_head()
        assert await connection.read() == b"hel"
        connection.abort()
        with pytest.raises(UpstreamProtocolError):
            await connection.read()


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
        b"HTTP/1.1 999 Strange\r\ncontent-length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_an_error(garbage: bytes) -> None:
    """Also ambiguous lengths, upgrades nobody asked for, and statuses that no client could be sent."""

    async def script(peer: Peer) -> None:
        await peer.answer(garbage)
        await peer.gone()

    async with connected(script) as (connection, _):
        with pytest.raises(UpstreamProtocolError):
            await ask(connection)
        assert connection.is_closed


@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nx-long: ",
        chunked(b"a", end=b"0\r\n"),
    ],
    ids=["headers", "one-header", "trailers"],
)
async def test_endless_headers_are_an_error(beginning: bytes) -> None:
    """A head and trailers have a bound, whether in many lines or in one that never ends."""

    async def script(peer: Peer) -> None:
        await peer.answer(beginning)
        line = b"x" * 4094 if beginning.endswith(b": ") else b"x: %b\r\n" % (b"y" * 4089)
        for _ in range(16 * MAX_HEAD_BYTES // len(line)):  # more than fits into the read with the body
            await peer.send(line)
        await peer.gone()

    async with connected(script) as (connection, _):
        with pytest.raises(UpstreamProtocolError, match="larger than"):
            await ask(connection)


@pytest.mark.parametrize("excess", [whole(b"evil"), b"HTTP/1.1 200", b"garbage"])
async def test_bytes_after_an_answer_never_become_part_of_it(excess: bytes) -> None:
    """A second answer in the same read is not the first one's body, and the connection is given up."""
    for answer, body in (ANSWERS["whole"], ANSWERS["chunked"]):
        async with connected(answering(answer + excess)) as (connection, upstream):
            await connection.send(REQUEST, b"")
            head = await connection.read_head()
            headers = list(head.headers)
            assert await read_all(connection) == body
            assert head.headers == headers
            assert not connection.can_be_reused
            await upstream.ended[0].wait()


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    """An answer to no question would be taken for the next one's."""
    rested = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(whole(b"hello"))
        await rested.wait()
        await peer.send(whole(b"evil"))
        await peer.gone()

    async with connected(script) as (connection, upstream):
        assert await ask(connection) == b"hello"
        assert connection.can_be_reused
        rested.set()
        await upstream.ended[0].wait()
        assert not connection.can_be_reused


async def test_a_connection_serves_one_request_after_another() -> None:
    """State of one answer does not reach into the next."""
    async with connected(answering(chunked(b"a"), whole(b"bc"), whole(b""))) as (connection, upstream):
        assert [await ask(connection) for _ in range(3)] == [b"a", b"bc", b""]
        assert connection.can_be_reused
        assert len(upstream.peers) == 1


async def test_a_connection_that_the_answer_closes_is_not_used_again() -> None:
    """`connection: close` counts from the last byte, before the replica gets round to closing."""
    async with connected(answering(whole(b"hello", headers=b"connection: close\r\n"))) as (connection, _):
        assert await ask(connection) == b"hello"
        assert not connection.can_be_reused


async def test_a_slow_reader_stops_the_replica() -> None:
    """At most the high-water mark and one read wait in memory, however much is sent."""
    total = 24 << 20
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            await peer.send(b"x" * (64 << 10))
            sent += 64 << 10

    async with connected(script) as (connection, _):
        await connection.send(REQUEST, b"")
        await connection.read_head()
        before = -1
        while before != sent:  # until the replica makes no more headway
            before = sent
            for _ in range(50):
                await asyncio.sleep(0)
        assert sent < total
        received = 0
        while (piece := await connection.read()) is not None:
            assert len(piece) <= HIGH_WATER + ONE_READ
            received += len(piece)
        assert received == total


async def test_an_answer_before_the_request_was_read_is_taken() -> None:
    """A replica may refuse a large body by its head (413) and read no further: waiting for it would hang."""
    answered = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(whole(b"too large", b"413 Payload Too Large"))
        await answered.wait()

    async with connected(script) as (connection, _):
        await connection.send(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 33554432\r\n\r\n", b"x" * (32 << 20)
        )
        assert (await connection.read_head()).status == 413
        assert await read_all(connection) == b"too large"
        assert connection.is_complete
        assert not connection.can_be_reused, "the rest of the body would go before the next request"
        answered.set()


async def test_a_replica_that_leaves_while_we_send_is_an_error() -> None:
    """The sender is woken, not left waiting for room."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.reset()

    async with connected(script) as (connection, _):
        with pytest.raises(UpstreamError):
            await connection.send(b"POST / HTTP/1.1\r\ncontent-length: 33554432\r\n\r\n", b"x" * (32 << 20))


async def test_aborting_tells_the_replica() -> None:
    """That is how an engine learns that nobody waits for its answer."""
    async with connected(silent) as (connection, upstream):
        await connection.send(REQUEST, b"")
        connection.abort()
        await upstream.ended[0].wait()
        assert not connection.can_be_reused
