"""Readiness, as replicas come and go."""

from __future__ import annotations

import asyncio

import pytest

from penstock.fleet.catalog import Replica, Snapshot
from penstock.gateway.health import HealthBoard
from raw_client import RawClient, raw_client
from running_gateway import running_gateway
from scripted_owner import ScriptedOwner
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

    def test_unknown_is_not_ready(self) -> None:
        """A replica gets no request before it answered a check."""
        board = HealthBoard(self.SNAPSHOT)
        assert board.ready("m") == []
        assert board.states() == {"m": {"m/0": False, "m/1": False}, "n": {"n/0": False}}

    def test_the_last_word_counts(self) -> None:
        """Of a check or of an attempt to connect."""
        board = HealthBoard(self.SNAPSHOT)
        board.set_ready(self.REPLICAS[1], True)
        assert board.ready("m") == [self.REPLICAS[1]]
        assert board.ready("n") == []
        board.set_ready(self.REPLICAS[1], False)
        assert board.ready("m") == []

    async def test_all_are_known_when_each_was_checked_once(self) -> None:
        """Ready or not; a replica that does not answer is waited for only so long."""
        board = HealthBoard(self.SNAPSHOT)
        for replica in (*self.REPLICAS, self.OTHER):
            assert not await board.wait_known(0)
            board.set_ready(replica, False)
        assert await board.wait_known(60)


async def test_the_first_request_finds_ready_replicas() -> None:
    """A gateway that is restarted in front of healthy replicas refuses nobody."""
    async with (
        ScriptedUpstream(UP, answering_once(whole(b"{}"))) as replica,
        running_gateway({"m": [replica.port]}) as gateway,
        raw_client(gateway.port) as client,
    ):
        assert (await client.ask("/v1/chat/completions", b'{"model": "m"}')).status == 200


async def test_a_replica_that_does_not_answer_holds_nothing_up() -> None:
    """The gateway serves what else it has."""
    async with (
        ScriptedUpstream(silent) as replica,
        ScriptedUpstream(silent) as other,
        running_gateway({"m": [replica.port], "n": [other.port]}, first_checks_s=0) as gateway,
        raw_client(gateway.port) as client,
    ):
        answer = await client.ask("/readyz", method="GET")
        assert (answer.status, b'"status":"not ready"' in answer.body) == (503, True)


async def test_one_model_that_can_be_served_is_ready() -> None:
    """A load balancer must not take the whole gateway out for one model; the word tells an operator."""
    async with (
        ScriptedUpstream(UP) as replica,
        ScriptedUpstream(DOWN) as other,
        running_gateway({"m": [replica.port], "n": [other.port]}) as gateway,
        raw_client(gateway.port) as client,
    ):
        answer = await client.ask("/readyz", method="GET")
        assert answer.status == 200
        assert answer.body == b'{"status":"partly ready","replicas":{"m":{"m/0":true},"n":{"n/0":false}}}'


async def test_a_replica_becomes_ready_and_unready_and_ready_again() -> None:
    """As its health check says; the check asks our engine's path."""
    state = [DOWN]

    async def script(peer: Peer) -> None:
        await state[0](peer)

    async with (
        ScriptedUpstream(script) as replica,
        running_gateway({"m": [replica.port]}, **OFTEN) as gateway,
        raw_client(gateway.port) as client,
    ):
        assert b'"m/0":false' in await until(client, 503)
        for following, status in ((UP, 200), (DOWN, 503), (UP, 200)):
            state[0] = following
            await until(client, status)
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
        running_gateway({"m": [port]}, **OFTEN) as gateway,
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


async def test_a_replica_that_rests_is_not_asked() -> None:
    """Its listener would take the question into the queue of a process that is not there."""
    async with (
        ScriptedUpstream(UP) as replica,
        running_gateway({"m": [replica.port]}, first_checks_s=0.0, **OFTEN) as gateway,
        raw_client(gateway.port) as client,
    ):
        await until(client, 200)
        owner = ScriptedOwner(["m"])
        gateway.local_models.connect(owner.roster(), owner.orders.append)
        assert b'"m/0":false' in (await client.ask("/readyz", method="GET")).body
        asked = len(replica.peers)
        await asyncio.sleep(0.05)  # tens of checks, were there any
        assert len(replica.peers) <= asked + 1  # one may have been on its way
        assert b'"m/0":false' in (await client.ask("/readyz", method="GET")).body
        owner.phases["m"] = "loading"
        owner.load("m")
        gateway.local_models.apply(owner.states.popleft())
        assert b'"m/0":true' in (await client.ask("/readyz", method="GET")).body
