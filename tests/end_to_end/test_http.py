"""Raw HTTP against a live `penstock up`."""

from __future__ import annotations

import asyncio
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from penstock.protocol import chat, completions
from raw_client import RawClient, raw_client
from running_service import RunningService, listening_port, sockets

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK = {"model": "little", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETE = {"model": "little", "prompt": "hi", "max_tokens": 2}
LIMIT_S = 30


async def test_a_minimal_request_is_answered(port: int) -> None:
    """Without any header that curl would not send."""
    async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
        answer = await client.ask(
            CHAT, b'{"model":"little","messages":[{"role":"user","content":"hi"}],"max_tokens":3}'
        )
        assert answer.status == 200
        assert answer.values(b"content-type") == [b"application/json"]
        assert len(answer.values(b"x-request-id")) == 1
        assert json.loads(answer.body)["usage"]["completion_tokens"] == 3


async def test_a_stream_ends_with_done(port: int) -> None:
    """Every event is JSON but the last."""
    async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
        answer = await client.ask(CHAT, json.dumps(ASK | {"stream": True}).encode())
        assert answer.values(b"content-type") == [b"text/event-stream; charset=utf-8"]
        *events, done, rest = answer.body.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        assert all(json.loads(event.removeprefix(b"data: "))["object"] for event in events)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, b"{", None),
        (CHAT, b"[]", None),
        (CHAT, b"\xff", None),
        (CHAT, json.dumps({"messages": ASK["messages"]}).encode(), "model"),
        (CHAT, json.dumps({"model": "little"}).encode(), "messages"),
        (CHAT, json.dumps(ASK | {"messages": []}).encode(), "messages"),
        (CHAT, json.dumps(ASK | {"messages": "hi"}).encode(), "messages"),
        (CHAT, json.dumps(ASK | {"messages": [{"role": "user"}]}).encode(), "messages[0].content"),
        (CHAT, json.dumps(ASK | {"max_tokens": 0}).encode(), "max_tokens"),
        (CHAT, json.dumps(ASK | {"stream": "yes"}).encode(), "stream"),
        (CHAT, json.dumps(ASK | {"stop": ["a"] * 5}).encode(), "stop"),
        (COMPLETIONS, json.dumps({"model": "little"}).encode(), "prompt"),
        (COMPLETIONS, json.dumps(COMPLETE | {"top_p": 2}).encode(), "top_p"),
    ],
)  # fmt: skip
async def test_a_bad_request_is_a_400_that_names_its_field(
    port: int, path: str, body: bytes, param: str | None
) -> None:
    """The gateway's refusals and the engine's look alike."""
    async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
        answer = await client.ask(path, body)
        error = json.loads(answer.body)["error"]
        assert (answer.status, error["type"]) == (400, "invalid_request_error")
        named = (error["param"] or "").replace("[...]", "[0]")
        assert named == (param or "")


@pytest.mark.parametrize(
    ("path", "request_body", "unbuilt"),
    [(CHAT, ASK, chat.UNBUILT), (COMPLETIONS, COMPLETE, completions.UNBUILT)],
)
async def test_every_unbuilt_field_is_refused_by_name(port: int, path: str, request_body, unbuilt) -> None:
    """None is accepted and ignored."""
    async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
        for name in unbuilt:
            answer = await client.ask(path, json.dumps(request_body | {name: {"asked": "for"}}).encode())
            error = json.loads(answer.body)["error"]
            assert (answer.status, error["code"], error["param"]) == (400, "unsupported_parameter", name)


async def gauge(client: RawClient, name: str) -> float:
    text = (await client.ask("/metrics", method="GET")).body.decode()
    return next(sample.value for family in parse(text) for sample in family.samples if sample.name == name)


async def test_a_client_that_leaves_frees_its_sequence(service: RunningService, port: int) -> None:
    """Long before its stream would have ended, blocks and all."""
    engine_port = listening_port(service.child("engine"))
    body = json.dumps(ASK | {"stream": True, "max_tokens": 8000, "temperature": 0}).encode()
    async with asyncio.timeout(LIMIT_S), raw_client(engine_port) as engine:
        made = await gauge(engine, "vllm:generation_tokens_total")
        async with raw_client(port) as client:
            await client.request(CHAT, body)
            assert (await client.head()).status == 200
            await client.piece()
            assert await gauge(engine, "vllm:num_requests_running") == 1
            client.leave()
        while await gauge(engine, "vllm:num_requests_running"):
            pass
        assert await gauge(engine, "vllm:generation_tokens_total") - made < 4000
        blocks = (await engine.ask("/metrics", method="GET")).body.decode()
        assert 'penstock_engine_kv_blocks{state="held"} 0.0' in blocks


def test_each_process_holds_only_its_own_listener(service: RunningService) -> None:
    """A listener left in the wrong child would keep the port open after its server's end."""
    supervisor = sockets(service.process.pid)
    engine, gateway = sockets(service.child("engine")), sockets(service.child("gateway"))
    assert len(supervisor & engine) == 1
    assert len(supervisor & gateway) == 1
    assert not engine & gateway
