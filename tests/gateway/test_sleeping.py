"""/sleep, /wake_up and /is_sleeping, and what else the gateway says of models that can sleep."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from loop_turns import until
from penstock.fleet.orders import Order, Unload, Wake
from raw_client import RawClient, raw_client
from running_gateway import RunningGateway, error_of, running_gateway
from scripted_owner import ScriptedOwner
from scripted_upstream import LIMIT_S, ScriptedUpstream, answering, silent, whole

CHAT = "/v1/chat/completions"


class PromptOwner(ScriptedOwner):
    """Does at once what it is told; a model in `broken` fails to load."""

    def __init__(self, models: Sequence[str], broken: Sequence[str] = ()) -> None:
        super().__init__(models)
        self.broken = broken

    def take(self, gateway: RunningGateway, order: Order) -> None:
        """Obeys and answers."""
        self.orders.append(order)
        self.obey()
        self.load(order.model, "its folder is empty" if order.model in self.broken else "")
        self.unloaded(order.model)
        asyncio.get_running_loop().call_soon(self.answer, gateway)

    def answer(self, gateway: RunningGateway) -> None:
        """Delivers what it has said."""
        while self.states:
            gateway.local_models.apply(self.states.popleft())


@asynccontextmanager
async def serving(
    *broken: str, models: Sequence[str] = ("m", "org/n")
) -> AsyncIterator[tuple[RawClient, PromptOwner, ScriptedUpstream]]:
    """A gateway over one replica, which is every model's, and the owner of all but `elsewhere`."""
    async with (
        ScriptedUpstream(answering(whole(b"{}"))) as replica,
        running_gateway({name: [replica.port] for name in (*models, "elsewhere")}) as gateway,
        raw_client(gateway.port) as client,
    ):
        owner = PromptOwner(models, broken)
        gateway.local_models.connect(owner.roster(), lambda order: owner.take(gateway, order))
        yield client, owner, replica


async def test_a_model_is_told_to_sleep_and_to_wake() -> None:
    """By query or by body; each answer says how the model is then."""
    async with serving() as (client, owner, _):
        asked: list[tuple[str, str, bytes, str]] = [
            ("GET", "/is_sleeping?model=m", b"", "asleep"),
            ("POST", "/wake_up?model=m", b"", "ready"),
            ("GET", "/is_sleeping?model=m", b"", "ready"),
            ("POST", "/sleep", b'{"model": "m", "level": 2}', "asleep"),
            ("POST", "/wake_up", b'{"model": "org/n"}', "ready"),
            ("POST", "/sleep?model=org%2Fn&level=1", b"", "asleep"),
            ("POST", "/sleep?model=org/n", b" ", "asleep"),
        ]
        for method, path, body, state in asked:
            answer = await client.ask(path, body, method=method)
            assert (answer.status, json.loads(answer.body)["state"]) == (200, state), path
            assert json.loads(answer.body)["is_sleeping"] is (state == "asleep")
        assert owner.obeyed == [Wake("m"), Unload("m", "asked"), Wake("org/n"), Unload("org/n", "asked")]


async def test_the_only_model_need_not_be_named() -> None:
    """As with vLLM, which serves one."""
    async with serving(models=["m"]) as (client, _, _):
        assert json.loads((await client.ask("/wake_up")).body)["model"] == "m"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/sleep", b"", 400, "invalid_value", "model"),
        ("/sleep?model=m&level=3", b"", 400, "invalid_value", "level"),
        ("/sleep?model=m&level=", b"", 400, "invalid_value", "level"),
        ("/sleep?model=m&mode=abort", b"", 400, "unknown_parameter", "mode"),
        ("/sleep?model=m&model=m", b"", 400, "invalid_value", None),
        ("/sleep?model=%ff", b"", 400, "invalid_value", None),
        ("/sleep?" + "&".join(["model=m"] * 50), b"", 400, "invalid_value", None),
        ("/sleep?model=x", b"", 404, "model_not_found", "model"),
        ("/sleep?model=elsewhere", b"", 404, "model_not_found", "model"),
        ("/sleep?model=" + "x" * 5000, b"", 404, "model_not_found", "model"),
        ("/wake_up?model=m&tags=weights", b"", 400, "unknown_parameter", "tags"),
        ("/wake_up", b"[]", 400, "invalid_value", None),
        ("/wake_up", b"{", 400, "invalid_value", None),
        ("/wake_up", b'{"model": 1}', 400, "invalid_value", "model"),
        ("/wake_up", b'{"model": null}', 400, "invalid_value", "model"),
        ("/wake_up", b'{"model": "\\ud800"}', 400, "invalid_value", None),
        ("/wake_up", b'{"model":' + b"[" * 100_000, 400, "invalid_value", None),
        ("/sleep", b'{"model": "m", "level": NaN}', 400, "invalid_value", None),
        ("/sleep", b'{"model": "m", "level": 1.5}', 400, "invalid_value", "level"),
        ("/sleep", b'{"model": "m", "level": true}', 400, "invalid_value", "level"),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    path: str, body: bytes, status: int, code: str, param: str | None
) -> None:
    """By name, with nothing done; a client's own words are repeated in part only."""
    async with serving() as (client, owner, _):
        answer = await client.ask(path, body)
        error = error_of(answer)
        assert (answer.status, error["code"]) == (status, code), error
        if param is not None:
            assert error["param"] == param
        assert len(str(error["message"])) < 500
        assert not owner.obeyed


async def test_a_gateway_without_an_owner_has_nothing_to_wake() -> None:
    """It says so."""
    async with (
        ScriptedUpstream(answering(whole(b"{}"))) as replica,
        running_gateway({"m": [replica.port]}) as gateway,
        raw_client(gateway.port) as client,
    ):
        assert (await client.ask("/wake_up?model=m")).status == 404
        assert "models" not in json.loads((await client.ask("/readyz", method="GET")).body)


async def test_a_request_wakes_its_model_and_is_relayed() -> None:
    """And finds it awake the next time; nobody asks a sleeping replica for its health."""
    async with serving() as (client, owner, replica):
        for _ in range(2):
            assert (await client.ask(CHAT, b'{"model": "m"}')).body == b"{}"
        assert owner.obeyed == [Wake("m")]
        lines = [request.line for peer in replica.peers for request in peer.requests]
        assert lines.count(b"POST /v1/chat/completions HTTP/1.1") == 2


async def test_a_wait_counts_on_the_requests_own_time() -> None:
    """The replica is given what is left of it; a time that is none is refused before anything is loaded."""
    async with serving() as (client, owner, replica):
        bad = await client.ask(CHAT, b'{"model": "m"}', headers=[(b"x-request-timeout", b"soon")])
        assert (bad.status, error_of(bad)["param"]) == (400, "x-request-timeout")
        assert not owner.obeyed
        await client.ask(CHAT, b'{"model": "m"}', headers=[(b"x-request-timeout", b"30")])
        await client.ask(CHAT, b'{"model": "m"}', headers=[(b"x-request-timeout", b"30")])
        relayed = [request for peer in replica.peers for request in peer.requests if b"POST" in request.line]
        (waited,), (passed,) = [request.values(b"x-request-timeout") for request in relayed]
        assert 0 < float(waited) <= 30
        assert b"." in waited
        assert passed == b"30"


async def test_a_failed_load_is_a_503_with_the_reason() -> None:
    """At the request, at /wake_up, in the list and in /readyz."""
    async with serving("m") as (client, _, _):
        for answer in (await client.ask(CHAT, b'{"model": "m"}'), await client.ask("/wake_up?model=m")):
            assert (answer.status, error_of(answer)["code"]) == (503, "model_load_failed")
            assert "its folder is empty" in str(error_of(answer)["message"])
            assert answer.values(b"retry-after") == [b"7"]
        listed = json.loads((await client.ask("/v1/models", method="GET")).body)["data"]
        assert {model["id"]: model["penstock"] for model in listed} == {
            "m": {"state": "failed", "reason": "its folder is empty"},
            "org/n": {"state": "asleep"},
            "elsewhere": {"state": "ready"},
        }
        ready = json.loads((await client.ask("/readyz", method="GET")).body)
        assert (ready["status"], ready["models"]) == ("partly ready", {"m": "failed", "org/n": "asleep"})


async def test_a_client_that_leaves_stops_waiting_for_the_load() -> None:
    """Its request ends; the load that it began is the model's."""
    async with (
        ScriptedUpstream(silent) as replica,
        running_gateway({"m": [replica.port]}, first_checks_s=0.0) as gateway,
    ):
        owner = ScriptedOwner(["m"])
        gateway.local_models.connect(owner.roster(), owner.orders.append)
        async with asyncio.timeout(LIMIT_S):
            async with raw_client(gateway.port) as client:
                await client.request(CHAT, b'{"model": "m"}')
                await until(lambda: gateway.drain.num_running == 1)
            await until(lambda: gateway.drain.num_running == 0)
        assert list(owner.orders) == [Wake("m")]
