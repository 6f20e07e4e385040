"""Which replica gets a request, and which requests get none."""

from __future__ import annotations

import asyncio
import json

import pytest

from penstock.asgi.settings import HttpLimits
from penstock.base.errors import InvalidRequestError
from penstock.gateway.relay import read_model
from penstock.protocol.generation import MAX_NAME_LENGTH
from raw_client import raw_client
from running_gateway import error_of, relayed, running_gateway
from scripted_upstream import (
    Peer,
    Script,
    ScriptedUpstream,
    answering,
    answering_once,
    healthy,
    silent,
    whole,
)

CHAT = "/v1/chat/completions"
BODY = b'{"model": "m", "messages": []}'


async def test_a_model_without_ready_replica_is_a_503() -> None:
    """With Retry-After, since it is expected back."""

    async def ill(peer: Peer) -> None:
        await peer.answer(whole(b"", b"503 Service Unavailable"))

    async with (
        ScriptedUpstream(ill) as replica,
        running_gateway({"m": [replica.port]}) as gateway,
        raw_client(gateway.port) as client,
    ):
        answer = await client.ask(CHAT, BODY)
        assert (answer.status, error_of(answer)["code"]) == (503, "not_ready")
        assert answer.values(b"retry-after") == [b"2"]


async def test_a_replica_at_its_bound_is_a_503() -> None:
    """More connections than allowed are refused at once, with Retry-After."""
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()

    async with relayed(script, max_connections=1) as (client, _, gateway):
        await client.request(CHAT, BODY)
        await asked.wait()
        async with raw_client(gateway.port) as second:
            answer = await second.ask(CHAT, BODY)
        assert (answer.status, error_of(answer)["code"]) == (503, "over_capacity")
        assert answer.values(b"retry-after") == [b"1"]


async def test_the_replica_with_the_fewest_requests_is_asked() -> None:
    """Two requests at the same time go to two replicas."""
    asked = [asyncio.Event(), asyncio.Event()]

    def noting(event: asyncio.Event) -> Script:
        async def script(peer: Peer) -> None:
            await peer.request()
            event.set()
            await peer.gone()

        return script

    async with (
        ScriptedUpstream(healthy, noting(asked[0])) as first,
        ScriptedUpstream(healthy, noting(asked[1])) as second,
        running_gateway({"m": [first.port, second.port]}) as gateway,
        raw_client(gateway.port) as one,
        raw_client(gateway.port) as other,
    ):
        await one.request(CHAT, BODY)
        await other.request(CHAT, BODY)
        for event in asked:
            await event.wait()


async def test_equally_busy_replicas_take_turns() -> None:
    """Or the first would do all the work of a quiet service, and its caches alone would be warm."""
    always = answering(whole(b"{}"))
    async with (
        ScriptedUpstream(healthy, always) as first,
        ScriptedUpstream(healthy, always) as second,
        running_gateway({"m": [first.port, second.port]}) as gateway,
        raw_client(gateway.port) as client,
    ):
        for _ in range(6):
            assert (await client.ask(CHAT, BODY)).status == 200
        asked = [[len(peer.requests) for peer in replica.peers] for replica in (first, second)]
        assert asked == [[1, 3], [1, 3]]


async def test_an_adapters_name_leads_to_its_models_replicas() -> None:
    """Which get the request as it came; the list says whose it is, readiness knows models only."""
    body = b'{"model": "sql", "messages": []}'
    async with (
        ScriptedUpstream(healthy, answering(whole(b"{}"))) as replica,
        ScriptedUpstream(healthy, answering(whole(b"{}"))) as other,
        running_gateway({"m": [replica.port], "n": [other.port]}, loras={"m": ["sql"]}) as gateway,
        raw_client(gateway.port) as client,
    ):
        assert (await client.ask(CHAT, body)).status == 200
        assert replica.peers[-1].requests[-1].body == body
        listed = json.loads((await client.ask("/v1/models", method="GET")).body)["data"]
        assert [(model["id"], model.get("parent")) for model in listed] == [
            ("m", None),
            ("n", None),
            ("sql", "m"),
        ]
        ready = json.loads((await client.ask("/readyz", method="GET")).body)
        assert set(ready["replicas"]) == {"m", "n"}
        answer = await client.ask(CHAT, b'{"model": "no", "messages": []}')
        assert error_of(answer)["message"].endswith("there is: m, n, sql")


class TestDeadReplica:
    """One that dies between two health checks refuses connections: nothing was sent, others can take it."""

    async def test_another_replica_takes_the_request(self) -> None:
        """The dead one, which looks the least busy, is left alone until a health check finds it again."""
        async with (
            ScriptedUpstream(healthy) as dead,
            ScriptedUpstream(healthy, answering(whole(b"{}"))) as alive,
            running_gateway({"m": [dead.port, alive.port]}) as gateway,
            raw_client(gateway.port) as client,
        ):
            dead.refuse()
            for _ in range(4):
                assert (await client.ask(CHAT, BODY)).status == 200
            answer = await client.ask("/readyz", method="GET")
            assert answer.body == b'{"status":"ready","replicas":{"m":{"m/0":false,"m/1":true}}}'
            assert [len(peer.requests) for peer in dead.peers] == [1], "only the health check"

    async def test_where_all_are_dead_each_is_tried_once(self) -> None:
        """Then it is a 502, and the next request is told that nothing is ready."""
        async with (
            ScriptedUpstream(healthy) as one,
            ScriptedUpstream(healthy) as other,
            running_gateway({"m": [one.port, other.port]}) as gateway,
            raw_client(gateway.port) as client,
        ):
            one.refuse()
            other.refuse()
            answers = [await client.ask(CHAT, BODY) for _ in range(2)]
            told = [(answer.status, error_of(answer)["code"]) for answer in answers]
            assert told == [(502, "upstream_connect_error"), (503, "not_ready")]

    async def test_a_request_that_was_sent_stays_with_its_replica(self) -> None:
        """Another one might do the work a second time."""
        async with (
            ScriptedUpstream(healthy, answering_once(b"")) as broken,
            ScriptedUpstream(healthy, answering_once(b"")) as other,
            running_gateway({"m": [broken.port, other.port]}) as gateway,
            raw_client(gateway.port) as client,
        ):
            answer = await client.ask(CHAT, BODY)
            assert error_of(answer)["code"] == "upstream_protocol_error"
            assert len(broken.peers) + len(other.peers) == 3


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b'{"model": "other"}', 404, "model_not_found", "model"),
        (b"{}", 400, "invalid_value", "model"),
        (b'{"model": null}', 400, "invalid_value", "model"),
        (b'{"model": 7}', 400, "invalid_value", "model"),
        (b'{"model": ["m"]}', 400, "invalid_value", "model"),
        (b"", 400, "invalid_value", None),
        (b"{", 400, "invalid_value", None),
        (b"[]", 400, "invalid_value", None),
        (b'"m"', 400, "invalid_value", None),
        (b'{"model": "m"', 400, "invalid_value", None),
        (b'{"model": "m"} x', 400, "invalid_value", None),
        (b'{"model": "\xff"}', 400, "invalid_value", None),
        (b'{"model": "%b"}' % (b"m" * (MAX_NAME_LENGTH + 1)), 400, "invalid_value", "model"),
        (b"[" * 100_000, 400, "invalid_value", None),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_a_body_that_cannot_be_routed_is_refused(
    body: bytes, status: int, code: str, param: str | None
) -> None:
    """With the field at fault, and without a connection to a replica."""
    async with relayed(silent) as (client, replica, _):
        answer = await client.ask(CHAT, body)
        error = error_of(answer)
        assert (answer.status, error["code"], error["param"]) == (status, code, param)
        assert len(replica.peers) == 1, "only the health check"


async def test_a_clients_words_are_repeated_only_in_part() -> None:
    """Neither in answers nor, through them, in logs."""
    name = b"x" * MAX_NAME_LENGTH
    async with relayed(silent) as (client, _, _):
        for answer in (
            await client.ask(CHAT, b'{"model": "%b"}' % name),
            await client.ask(f"/v1/models/{'x' * 20_000}", method="GET"),
            await client.ask(f"/{'x' * 20_000}", method="GET"),
        ):
            assert answer.status == 404
            length = len(str(error_of(answer)["message"]))
            assert length in range(100, 200)


def test_deep_nesting_is_no_crash() -> None:
    """A parser that recurses must turn its own limit into a client's error."""
    with pytest.raises(InvalidRequestError):
        read_model(b'{"messages": ' + b"[" * 1_000_000)


async def test_a_body_over_the_limit_is_a_413() -> None:
    """By its declared length, before it is read."""
    async with relayed(silent, limits=HttpLimits(max_body_bytes=10)) as (client, replica, _):
        answer = await client.ask(CHAT, BODY)
        assert (answer.status, error_of(answer)["code"]) == (413, "body_too_large")
        assert len(replica.peers) == 1
