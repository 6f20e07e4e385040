"""A pool of connections to a replica that plays exact bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Answer, Call, Pool
from scripted_upstream import Script, ScriptedUpstream

GET = Call("GET", "/")


def pool_to(port: int, replay_within_s: float = 60.0, **settings: float) -> Pool:
    """Unless told otherwise it takes every connection lost before an answer for a stale one, however late."""
    return Pool("127.0.0.1", port, f"127.0.0.1:{port}", UpstreamSettings(**settings), replay_within_s)


@asynccontextmanager
async def pooled(*scripts: Script, **settings: float) -> AsyncIterator[tuple[Pool, ScriptedUpstream]]:
    """A pool in front of a scripted replica; afterwards nothing may be in flight."""
    async with ScriptedUpstream(*scripts) as upstream:
        pool = pool_to(upstream.port, **settings)
        try:
            yield pool, upstream
        finally:
            assert pool.num_busy == 0
            pool.close()


async def read_all(answer: Answer) -> bytes:
    """The rest of the body."""
    pieces = []
    while (piece := await answer.read()) is not None:
        pieces.append(piece)
    return b"".join(pieces)


async def ask(pool: Pool, call: Call = GET) -> bytes:
    """Sends a call; its answer's whole body."""
    async with pool.request(call) as answer:
        return await read_all(answer)
