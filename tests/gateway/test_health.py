"""Readiness, as replicas come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from penstock.fleet.catalog import Replica, Snapshot
from penstock.gateway.health import HealthBoard
from raw_client import RawClient, raw_client
from running_gateway import running_gateway
from scripted_upstream import Peer, Script, ScriptedUpstream, answering_once, silent, whole

OFTEN = {"health_interval_s": 0.001}
CLOSE = b"connection: close\r\n"
UP = answering_once(whole(b"{}", headers=CLOSE))
DOWN = answering_once(whole(b"", b"503 Service Unavailable", CLOSE))


async def until(client: RawClient, status: int) -> bytes:
    """Asks /readyz until it answers with a status; the scripted replica bounds the time."""
    while (answer := await client.ask("/readyz", method="GET")).status != status:
        pass
    return answer.body


class TestBoard:
    """What is known of replicas."""

    REPLICAS = tuple(Replica(f"m/{number}", "127.0.0.1", 1, "/health") for number in range(2))
    OTHER = Replica("n/0", "127.0.0.1", 1, "/health")
    SNAPSHOT = Snapshot(0, {"m": REPLICAS, "n": (OTHER,)})

    def board(self, on_all_ready: Callable[[], None] = lambda: None) -> HealthBoard:
        return HealthBoard(self.SNAPSHOT, on_all_ready)

    def test_unknown_is_not_ready(self) -> None:
        """A replica gets no request before it answered a check."""
        board = self.board()
        assert board.ready("m") == []
        assert not board.all_ready
        assert board.states() == {"m": {"m/0": False, "m/1": False}, "n": {"n/0": False}}

    def test_one_ready_replica_per_model_is_enough(self) -> None:
        """A model with a second replica down still serves."""
        board = self.board()
        board.set_ready(self.REPLICAS[1], True)
        assert not board.all_ready
        board.set_ready(self.OTHER, True)
        assert board.all_ready
        assert board.ready("m") == [self.REPLICAS[1]]
        board.set_ready(self.OTHER, False)
        assert not board.all_ready

    def test_readiness_is_told_once(self) -> None:
        """The supervisor announces the address the first time only."""
        calls: list[None] = []
        board = self.board(lambda: calls.append(None))
        for is_ready in (True, False, True):
            board.set_ready(self.REPLICAS[0], is_ready)
            board.set_ready(self.OTHER, is_ready)
        assert len(calls) == 1


async def test_a_replica_becomes_ready_and_unready_and_ready_again() -> None:
    """As its health check says; the check asks our engine's path."""
    state = [DOWN]

    async def script(peer: Peer) -> None:
        await state[0](peer)

    async with (
        ScriptedUpstream(script) as replica,
        running_gateway({"m": [replica.port]}, until_ready=False, **OFTEN) as gateway,
        raw_client(gateway.port) as client,
    ):
        assert b'"m/0":false' in await until(client, 503)
        for following, status in ((UP, 200), (DOWN, 503), (UP, 200)):
            state[0] = following
            await until(client, status)
        assert gateway.ready.is_set()
        assert replica.peers[0].requests[0].line == b"GET /health HTTP/1.1"


@pytest.mark.parametrize(
    "ill",
    [
        DOWN,
        answering_once(b"garbage"),
        answering_once(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"),
        answering_once(b""),
        silent,
    ],
    ids=["503", "garbage", "cut", "closed", "silent"],
)
async def test_anything_but_a_whole_200_in_time_is_unready(ill: Script) -> None:
    """Readiness is lost at the first failed check."""
    async with (
        ScriptedUpstream(UP, ill) as replica,
        running_gateway({"m": [replica.port]}, health_timeout_s=0.05, **OFTEN) as gateway,
        raw_client(gateway.port) as client,
    ):
        assert b'"status":"not ready"' in await until(client, 503)


async def test_a_replica_that_is_gone_is_unready() -> None:
    """Nobody listens any more."""
    async with ScriptedUpstream(UP) as replica:
        port = replica.port
    async with (
        ScriptedUpstream(UP),
        running_gateway({"m": [port]}, until_ready=False, **OFTEN) as gateway,
        raw_client(gateway.port) as client,
    ):
        assert b'"m/0":false' in await until(client, 503)


async def test_a_replica_at_its_bound_stays_ready() -> None:
    """The check finds no free connection: that is load. Taking it for illness would refuse everybody."""
    asked, done = asyncio.Event(), asyncio.Event()

    async def busy(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await done.wait()
        await peer.send(whole(b"{}", headers=CLOSE))

    async with (
        ScriptedUpstream(UP, busy, UP) as replica,
        running_gateway({"m": [replica.port]}, max_connections=1, health_interval_s=0.05) as gateway,
        raw_client(gateway.port) as client,
        raw_client(gateway.port) as other,
    ):
        await client.request("/v1/chat/completions", b'{"model": "m"}')
        await asked.wait()
        for _ in range(300):  # many health intervals
            assert (await other.ask("/readyz", method="GET")).status == 200
        done.set()
        assert (await client.answer()).status == 200


async def test_draining_is_not_ready() -> None:
    """Load balancers must stop sending before new requests are refused; the probe itself is answered."""
    async with (
        ScriptedUpstream(UP) as replica,
        running_gateway({"m": [replica.port]}) as gateway,
        raw_client(gateway.port) as client,
    ):
        assert (await client.ask("/readyz", method="GET")).status == 200
        gateway.drain.begin()
        answer = await client.ask("/readyz", method="GET")
        assert (answer.status, b'"status":"draining"' in answer.body) == (503, True)
        assert (await client.ask("/livez", method="GET")).status == 200
