"""When a request is sent a second time: only on a kept connection that was stale, and never twice over."""

from __future__ import annotations

import pytest

from penstock.base.errors import UpstreamProtocolError
from running_pool import ask, pooled
from scripted_upstream import Peer, answering, whole


@pytest.mark.parametrize("ends", [Peer.close, Peer.reset])
async def test_a_kept_connection_that_went_stale_is_replaced(ends) -> None:
    """The replica may close an idle connection in the moment in which a request is sent on it."""

    async def stale(peer: Peer) -> None:
        await peer.answer(whole(b"first"))
        await peer.request()
        ends(peer)

    async with pooled(stale, answering(whole(b"second"))) as (pool, upstream):
        assert await ask(pool) == b"first"
        assert await ask(pool) == b"second"
        assert len(upstream.peers) == 2


async def test_a_stale_connection_is_replaced_only_once() -> None:
    """A replica that closes every connection is broken, not stale."""

    async def stale(peer: Peer) -> None:
        await peer.answer(whole(b"first"))
        await peer.request()

    async def broken(peer: Peer) -> None:
        await peer.request()

    async with pooled(stale, broken) as (pool, upstream):
        await ask(pool)
        with pytest.raises(UpstreamProtocolError):
            await ask(pool)
        assert len(upstream.peers) == 2


async def test_a_request_is_not_repeated_once_its_answer_began() -> None:
    """One byte proves that the replica worked on it: a second time would be billed twice."""

    async def script(peer: Peer) -> None:
        await peer.answer(whole(b"first"))
        await peer.answer(b"H")

    async with pooled(script) as (pool, upstream):
        await ask(pool)
        with pytest.raises(UpstreamProtocolError):
            await ask(pool)
        assert len(upstream.peers) == 1


async def test_a_request_is_not_repeated_once_the_replica_had_time_to_work_on_it() -> None:
    """A connection that was stale fails at once; here the replica took the request and died over it."""

    async def script(peer: Peer) -> None:
        await peer.answer(whole(b"first"))
        await peer.request()

    async with pooled(script, replay_within_s=0) as (pool, upstream):
        await ask(pool)
        with pytest.raises(UpstreamProtocolError):
            await ask(pool)
        assert len(upstream.peers) == 1


async def test_a_request_on_a_new_connection_is_not_repeated() -> None:
    """Nothing was stale there: the replica took the request and died."""

    async def script(peer: Peer) -> None:
        await peer.request()

    async with pooled(script) as (pool, upstream):
        with pytest.raises(UpstreamProtocolError):
            await ask(pool)
        assert len(upstream.peers) == 1
