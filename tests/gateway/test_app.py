"""The gateway's endpoints, over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from prometheus_client.parser import text_string_to_metric_families as parse

from loop_turns import until
from penstock.observe import names
from raw_client import RawClient, raw_client
from running_gateway import CREATED, RunningGateway, running_gateway
from scripted_upstream import Script, ScriptedUpstream, answering, chunked, healthy, whole

CHAT = "/v1/chat/completions"
BODY = b'{"model": "m"}'


@asynccontextmanager
async def serving(*scripts: Script) -> AsyncIterator[tuple[RawClient, RunningGateway]]:
    async with (
        ScriptedUpstream(healthy, *scripts) as replica,
        ScriptedUpstream(healthy) as other,
        running_gateway({"m": [replica.port], "org/name": [other.port]}) as gateway,
        raw_client(gateway.port) as client,
    ):
        yield client, gateway


async def metrics(client: RawClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name and label values, those in the order of the table of names, the others after them."""
    labels = [label for metric in names.ALL for label in metric.labels]
    text = (await client.ask("/metrics", method="GET")).body.decode()
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse(text):
        for sample in family.samples:
            ordered = sorted(sample.labels, key=lambda label: labels.index(label) if label in labels else 99)
            samples.setdefault(sample.name, {})[tuple(sample.labels[label] for label in ordered)] = (
                sample.value
            )
    return samples


async def test_models_are_listed_and_described() -> None:
    """Sorted by name; a name may hold a slash, written as it is or encoded."""
    async with serving(answering(whole(b"{}"))) as (client, _):
        listed = json.loads((await client.ask("/v1/models", method="GET")).body)
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["m", "org/name"]
        for path in ("/v1/models/org/name", "/v1/models/org%2Fname"):
            answer = await client.ask(path, method="GET")
            assert json.loads(answer.body) == {
                "id": "org/name", "object": "model", "created": CREATED, "owned_by": "penstock",
                "penstock": {"state": "ready"},
            }  # fmt: skip


async def test_an_unknown_model_is_a_404() -> None:
    """With the code that clients know."""
    async with serving(answering(whole(b"{}"))) as (client, _):
        for name in ("other", "org", "org/name/x", "m/"):
            answer = await client.ask(f"/v1/models/{name}", method="GET")
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (404, "model_not_found")


async def test_metrics_count_each_request_once() -> None:
    """By outcome, an error told within a stream included."""
    cut = chunked(headers=b"content-type: text/event-stream\r\n", end=b"")

    async def cutting(peer) -> None:
        await peer.answer(cut)

    async with serving(cutting, answering(whole(b"{}"))) as (client, _):
        for _ in range(3):
            await client.ask(CHAT, BODY)
        await client.ask(CHAT, b"{}")
        await client.ask(CHAT, b'{"model": "x"}')
        samples = await metrics(client)
        counted = samples["penstock_requests_total"]
        assert counted["gateway", CHAT, "POST", "200", ""] == 2
        assert counted["gateway", CHAT, "POST", "200", "upstream_protocol_error"] == 1
        assert counted["gateway", CHAT, "POST", "400", "invalid_value"] == 1
        assert counted["gateway", CHAT, "POST", "404", "model_not_found"] == 1
        assert samples["penstock_request_duration_seconds_count"]["gateway", CHAT] == 5
        assert samples["penstock_requests_running"]["gateway",] == 0
        assert samples["penstock_upstream_connections"] == {("busy",): 0, ("idle",): 1}
        assert samples["penstock_replica_ready"]["m", "m/0"] == 1


async def test_clients_cannot_make_series() -> None:
    """Random paths, methods and models end in the same few label values, or memory would have no bound."""
    random = Random(7)
    async with serving(answering(whole(b"{}"))) as (client, _):
        await client.ask(CHAT, b'{"model": "first"}')
        await client.ask("/first", method="GET")
        await client.ask("/v1/models/first", method="GET")
        await client.ask("/first", method="PROPFIND")
        await client.ask("/v1/models", method="PROPFIND")
        await metrics(client)
        before = {name: set(series) for name, series in (await metrics(client)).items()}
        for _ in range(50):
            word = f"{random.randrange(1 << 60):x}"
            await client.ask(
                CHAT, b'{"model": "%b"}' % word.encode(), headers=[(b"x-request-id", word.encode())]
            )
            await client.ask(f"/{word}?{word}", method="GET")
            await client.ask(f"/v1/models/{word}", method="GET")
            for method in ("PROPFIND", "MKCOL", "M-SEARCH"):
                await client.ask(f"/{word}", method=method)
                await client.ask("/v1/models", method=method)
        after = {name: set(series) for name, series in (await metrics(client)).items()}
        assert after == before


async def test_a_hundred_streams_at_once_each_end_once() -> None:
    """Whole, every one of them, and afterwards nothing is in flight."""
    events = [b"data: %d\n\n" % number for number in range(20)] + [b"data: [DONE]\n\n"]
    stream = answering(chunked(*events, headers=b"content-type: text/event-stream\r\n"))

    async with serving(stream) as (client, gateway):

        async def one() -> bytes:
            async with raw_client(gateway.port) as own:
                return (await own.ask(CHAT, BODY)).body

        answers = await asyncio.gather(*(one() for _ in range(100)))
        assert set(answers) == {b"".join(events)}
        assert await gateway.drain.wait_idle(5)
        samples = await metrics(client)
        assert samples["penstock_requests_total"]["gateway", CHAT, "POST", "200", ""] == 100
        assert samples["penstock_upstream_connections"]["busy",] == 0


async def test_a_drain_refuses_new_requests_and_finishes_running_ones() -> None:
    """On connections old and new, until the last answer is out."""
    asked, gate = asyncio.Event(), asyncio.Event()

    async def gated(peer) -> None:
        await peer.request()
        asked.set()
        await gate.wait()
        await peer.send(whole(b"finished"))

    async with serving(gated) as (client, gateway), raw_client(gateway.port) as other:
        await client.request(CHAT, BODY)
        await asked.wait()
        gateway.stop.ask()
        await until(lambda: gateway.drain.is_draining)
        async with raw_client(gateway.port) as late:
            for refused in (other, late):
                answer = await refused.ask(CHAT, BODY)
                assert (answer.status, answer.values(b"retry-after")) == (503, [b"10"])
                assert json.loads(answer.body)["error"]["code"] == "draining"
        gate.set()
        assert (await client.answer()).body == b"finished"
