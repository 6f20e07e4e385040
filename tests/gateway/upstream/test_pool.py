"""The pool against a replica that plays exact bytes: nothing is left in doubt, nothing leaks."""

from __future__ import annotations

import asyncio
import socket

import pytest

from loop_turns import until
from penstock.base.errors import (
    CapacityError,
    UpstreamConnectError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Call, Pool
from running_pool import GET, ask, pool_to, pooled, read_all
from scripted_upstream import (
    Peer,
    answering,
    answering_once,
    chunked,
    silent,
    whole,
)


async def test_a_request_is_sent_as_it_was_given() -> None:
    """Line, host, headers in order, length, body: nothing is added."""
    async with pooled(answering(whole(b"ok"))) as (pool, upstream):
        await ask(pool, Call("POST", "/v1/x", [(b"a", b"1"), (b"b", b"2")], b"body"))
        await ask(pool)
        posted, got = upstream.peers[0].requests
        host = (b"host", pool.authority.encode())
        assert posted.line == b"POST /v1/x HTTP/1.1"
        assert posted.headers == [host, (b"a", b"1"), (b"b", b"2"), (b"content-length", b"4")]
        assert posted.body == b"body"
        assert (got.line, got.headers) == (b"GET / HTTP/1.1", [host])


async def test_a_post_without_a_body_says_so() -> None:
    """Without a length some servers wait for a body."""
    async with pooled(answering(whole(b"ok"))) as (pool, upstream):
        await ask(pool, Call("POST", "/"))
        assert upstream.peers[0].requests[0].values(b"content-length") == [b"0"]


async def test_connections_are_kept_and_used_again() -> None:
    """One after the other needs one connection, at the same time needs two."""
    async with pooled(answering(whole(b"ok"))) as (pool, upstream):
        for _ in range(5):
            assert await ask(pool) == b"ok"
        assert (len(upstream.peers), pool.num_idle) == (1, 1)
        async with pool.request(GET) as first, pool.request(GET) as second:
            assert pool.num_busy == 2
            await read_all(first)
            await read_all(second)
        assert (len(upstream.peers), pool.num_idle, pool.num_busy) == (2, 2, 0)


async def test_an_answer_left_unread_closes_its_connection() -> None:
    """That is how the replica learns that nobody waits; the connection would be out of step anyway."""

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await peer.gone()

    async with pooled(script) as (pool, upstream):
        async with pool.request(GET) as answer:
            assert await answer.read() == b"hello"
        assert pool.num_idle == 0
        await upstream.ended[0].wait()


async def test_a_failing_reader_closes_its_connection() -> None:
    """An exception inside the block leaves nothing behind."""

    async def script(peer: Peer) -> None:
        await peer.answer(chunked(b"hello", end=b""))
        await peer.gone()

    async with pooled(script) as (pool, upstream):
        with pytest.raises(RuntimeError):
            async with pool.request(GET):
                raise RuntimeError
        await upstream.ended[0].wait()
        assert (pool.num_busy, pool.num_idle) == (0, 0)


async def test_a_connection_that_closed_while_idle_is_not_tried() -> None:
    """Its end was seen, so a new one is opened at once."""
    async with pooled(answering_once(whole(b"ok"))) as (pool, upstream):
        assert await ask(pool) == b"ok"
        await upstream.ended[0].wait()
        await until(lambda: pool.num_idle == 0)
        assert await ask(pool) == b"ok"
        assert [len(peer.requests) for peer in upstream.peers] == [1, 1]


async def test_a_silent_replica_times_out_and_is_told() -> None:
    """No byte in time is a 504, and the connection does not go back."""
    async with pooled(silent, first_byte_timeout_s=0.02) as (pool, upstream):
        with pytest.raises(UpstreamTimeoutError) as caught:
            await ask(pool)
        assert caught.value.status == 504
        await upstream.ended[0].wait()


async def test_a_gap_in_the_answer_times_out() -> None:
    """A replica that hangs in mid-answer is as bad as one that is silent."""

    async def script(peer: Peer) -> None:
        await peer.answer(chunked(b"hello", end=b""))
        await peer.gone()

    async with pooled(script, gap_timeout_s=0.02) as (pool, upstream):
        async with pool.request(GET) as answer:
            assert await answer.read() == b"hello"
            with pytest.raises(UpstreamTimeoutError):
                await answer.read()
        await upstream.ended[0].wait()


async def test_a_refused_connection_is_an_error() -> None:
    """With the system's reason, and without a leak."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening
        pool = pool_to(unused.getsockname()[1])
        with pytest.raises(UpstreamConnectError, match="cannot connect"):
            await ask(pool)
        assert pool.num_busy == 0


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid"])
async def test_a_host_without_address_is_an_error(host: str) -> None:
    """A name that does not resolve, or is none, must not escape as the system's error."""
    pool = Pool(host, 80, f"{host}:80", UpstreamSettings())
    with pytest.raises(UpstreamConnectError):
        await ask(pool)
    assert pool.num_busy == 0


async def test_a_connection_that_is_not_accepted_times_out() -> None:
    """A full backlog swallows SYNs; only our own limit ends the wait."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):  # fills the backlog
            pool = pool_to(listener.getsockname()[1], connect_timeout_s=0.05)
            with pytest.raises(UpstreamConnectError, match=r"within 0\.05 s"):
                await ask(pool)
            assert pool.num_busy == 0


async def test_connections_are_bounded() -> None:
    """At the bound a request gets 503 with Retry-After at once, and is let in when one is free."""
    async with pooled(answering(whole(b"ok")), max_connections=2) as (pool, upstream):
        async with pool.request(GET) as first, pool.request(GET) as second:
            with pytest.raises(CapacityError) as caught:
                await ask(pool)
            assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
            await read_all(first)
            await read_all(second)
        assert await ask(pool) == b"ok"
        assert len(upstream.peers) == 2


async def test_connections_being_opened_count() -> None:
    """A hundred requests at once open no more than the bound."""
    async with pooled(answering(whole(b"ok")), max_connections=3) as (pool, upstream):
        results = await asyncio.gather(*(ask(pool) for _ in range(100)), return_exceptions=True)
        assert results.count(b"ok") >= 3
        assert all(result == b"ok" or isinstance(result, CapacityError) for result in results)
        assert len(upstream.peers) <= 3


async def test_idle_connections_expire() -> None:
    """The next request finds them gone and opens a new one."""
    async with pooled(answering(whole(b"ok")), idle_expiry_s=1e-9) as (pool, upstream):
        await ask(pool)
        assert pool.num_idle == 1
        now = asyncio.get_running_loop().time
        rested = now()
        await until(lambda: now() > rested)  # the loop's clock has a resolution
        await ask(pool)
        await upstream.ended[0].wait()
        assert len(upstream.peers) == 2


async def test_the_connection_used_last_is_used_next() -> None:
    """So that a burst's surplus of connections can expire."""
    async with pooled(answering(whole(b"ok"))) as (pool, upstream):
        async with pool.request(GET) as first:
            async with pool.request(GET) as second:
                await read_all(second)
            await read_all(first)
        for _ in range(3):
            await ask(pool)
        assert [len(peer.requests) for peer in upstream.peers] == [4, 1]


async def test_closing_ends_idle_and_busy_connections() -> None:
    """Afterwards a request in flight fails; it does not look finished."""
    async with pooled(answering(whole(b"ok")), silent) as (pool, upstream):
        await ask(pool)
        async with pool.request(GET) as answer:
            await read_all(answer)
            waiting = asyncio.ensure_future(ask(pool))
            await until(lambda: len(upstream.peers) == 2)
            pool.close()
            with pytest.raises(UpstreamProtocolError):
                await waiting
        for ended in upstream.ended:
            await ended.wait()


class TestCancellation:
    """Cancelling a request at each of its awaits frees its place and tells the replica."""

    @staticmethod
    async def cancel(pool: Pool, until: asyncio.Event, call: Call = GET) -> None:
        asking = asyncio.ensure_future(ask(pool, call))
        await until.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (pool.num_busy, pool.num_idle) == (0, 0)

    async def test_while_connecting(self) -> None:
        """At every turn of the loop until the connection stands."""
        async with pooled(silent) as (pool, upstream):
            for turns in range(12):
                asking = asyncio.ensure_future(ask(pool))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                assert (pool.num_busy, pool.num_idle) == (0, 0)
            for ended in upstream.ended:
                await ended.wait()

    async def test_while_sending(self) -> None:
        """The replica reads nothing, so the request cannot leave."""
        begun = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.reader.readuntil(b"\r\n\r\n")
            begun.set()
            await peer.gone()

        async with pooled(script) as (pool, upstream):
            await self.cancel(pool, begun, Call("POST", "/", body=b"x" * (32 << 20)))
            await upstream.ended[0].wait()

    async def test_while_waiting_for_the_head(self) -> None:
        """A non-streaming answer is computed during this wait."""
        asked = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            asked.set()
            await peer.gone()

        async with pooled(script) as (pool, upstream):
            await self.cancel(pool, asked)
            await upstream.ended[0].wait()

    async def test_while_reading_the_body(self) -> None:
        """A stream is mostly in this wait."""
        begun = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.answer(chunked(b"hello", end=b""))
            begun.set()
            await peer.gone()

        async with pooled(script) as (pool, upstream):
            await self.cancel(pool, begun)
            await upstream.ended[0].wait()

    async def test_while_replacing_a_stale_connection(self) -> None:
        """Neither the old connection nor the new one stays."""
        asked = asyncio.Event()

        async def stale(peer: Peer) -> None:
            await peer.answer(whole(b"ok"))
            await peer.request()

        async def again(peer: Peer) -> None:
            await peer.request()
            asked.set()
            await peer.gone()

        async with pooled(stale, again) as (pool, upstream):
            await ask(pool)
            await self.cancel(pool, asked)
            await upstream.ended[1].wait()
