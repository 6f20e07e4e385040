"""The relay between a real client and a replica that plays exact bytes."""

from __future__ import annotations

import asyncio
import json

import h11
import pytest

from penstock.gateway.app import RELAYED_PATHS
from running_gateway import error_of, relayed
from scripted_upstream import (
    Peer,
    answering,
    chunked,
    silent,
    whole,
)

CHAT = "/v1/chat/completions"
BODY = b'{"model": "m", "messages": []}'
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\n"
HELLO = b'data: {"choices": [{"delta": {"content": "hello"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("path", RELAYED_PATHS)
async def test_bodies_pass_byte_for_byte(path: str) -> None:
    """Spaces, odd escapes and unknown fields are the replica's business, and so is its answer's form."""
    body = b' { "unknown" : 1e0 , "model":"\\u006d"}\n'
    reply = b'{ "odd" :\t[ "\\u0041" ]}  '
    async with relayed(answering(whole(reply, headers=b"content-type: application/json\r\n"))) as (
        client,
        replica,
        _,
    ):
        answer = await client.ask(path, body)
        assert (answer.status, answer.body) == (200, reply)
        assert answer.values(b"content-length") == [str(len(reply)).encode()]
        request = replica.peers[1].requests[0]
        assert (request.line, request.body) == (b"POST %b HTTP/1.1" % path.encode(), body)


async def test_a_stream_passes_byte_for_byte_however_it_is_cut_up() -> None:
    """Chunks that end inside events, inside characters, of one byte, of many events."""
    text = 'data: {"ünïcode": "水"}\r\n\r\n: comment\n\n'.encode() + HELLO * 3 + DONE
    for size in (1, 2, 7, 4096):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        async with relayed(answering(chunked(*pieces, headers=EVENTS))) as (client, _, _):
            answer = await client.ask(CHAT, BODY)
            assert answer.body == text
            assert answer.values(b"content-type") == [b"text/event-stream; charset=utf-8"]


async def test_a_large_answer_passes_whole() -> None:
    """Larger than every buffer on the way."""
    reply = bytes(range(256)) * (16 << 10)
    async with relayed(answering(whole(reply))) as (client, _, _):
        assert (await client.ask(CHAT, BODY)).body == reply


async def test_each_piece_is_passed_on_before_the_next_one_is_sent() -> None:
    """Streaming means that nothing waits for more."""
    gates = [asyncio.Event() for _ in range(3)]

    async def script(peer: Peer) -> None:
        await peer.answer(chunked(headers=EVENTS, end=b""))
        for gate in gates:
            await gate.wait()
            await peer.send(b"%x\r\n%b\r\n" % (len(HELLO), HELLO))
        await peer.send(b"0\r\n\r\n")

    async with relayed(script) as (client, _, _):
        await client.request(CHAT, BODY)
        assert (await client.head()).status == 200
        for gate in gates:
            gate.set()
            assert await client.piece() == HELLO


async def test_the_clients_key_stays_here() -> None:
    """The replica gets what describes the request, never what authorises it, nor the connection's headers."""
    secrets = [
        (b"authorization", b"Bearer sk-secret"), (b"x-api-key", b"sk-secret"), (b"api-key", b"sk-secret"),
        (b"cookie", b"session=sk-secret"), (b"proxy-authorization", b"Basic sk-secret"),
    ]  # fmt: skip
    wanted = [
        (b"content-type", b"application/json"),
        (b"user-agent", b"test"),
        (b"traceparent", b"00-1-2-01"),
        (b"x-request-timeout", b"5"),
    ]
    others = [(b"te", b"trailers"), (b"accept-encoding", b"gzip"), (b"x-other", b"1")]
    async with relayed(answering(whole(b"{}"))) as (client, replica, _):
        await client.ask(CHAT, BODY, headers=[*secrets, *wanted, *others, (b"x-request-id", b"mine")])
        request = replica.peers[1].requests[0]
        authority = b"127.0.0.1:%d" % replica.port
        assert sorted(request.headers) == sorted(
            [
                *wanted,
                (b"host", authority),
                (b"x-request-id", b"mine"),
                (b"content-length", b"%d" % len(BODY)),
            ]
        )


async def test_headers_of_the_upstream_connection_end_here() -> None:
    """Those that RFC 9110 names, and those that the replica's own `connection` header names."""
    headers = (
        b"connection: keep-alive, X-Private\r\nx-private: 1\r\nkeep-alive: timeout=5\r\nserver: replica\r\n"
        b"date: yesterday\r\nproxy-authenticate: Basic\r\nx-request-id: theirs\r\nx-kept: 1\r\n"
        b"set-cookie: a\r\nset-cookie: b\r\n"
    )
    async with relayed(answering(whole(b"{}", headers=headers))) as (client, _, _):
        answer = await client.ask(CHAT, BODY, headers=[(b"x-request-id", b"mine")])
        names = [name for name, _ in answer.headers]
        assert not {b"connection", b"x-private", b"keep-alive", b"server", b"proxy-authenticate"} & set(names)
        assert names.count(b"date") == 1
        assert answer.values(b"date") != [b"yesterday"]
        assert answer.values(b"x-request-id") == [b"mine"]
        assert answer.values(b"set-cookie") == [b"a", b"b"]
        assert answer.values(b"x-kept") == [b"1"]


@pytest.mark.parametrize("given", [b"a b", b"x" * 129, "ü".encode(), b""])
async def test_an_unusable_request_id_is_replaced(given: bytes) -> None:
    """It goes into logs and to the replica, so it may hold nothing that forges either."""
    async with relayed(answering(whole(b"{}"))) as (client, replica, _):
        answer = await client.ask(CHAT, BODY, headers=[(b"x-request-id", given)])
        (own,) = answer.values(b"x-request-id")
        assert own.startswith(b"req-")
        assert replica.peers[1].requests[0].values(b"x-request-id") == [own]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (b"400 Bad Request", b""),
        (b"429 Too Many Requests", b"retry-after: 7\r\n"),
        (b"500 Oops", b""),
        (b"299 X", b""),
    ],
)
async def test_the_replicas_status_is_the_clients(status: bytes, headers: bytes) -> None:
    """An engine's 400 or 429 says something to the client; the gateway has nothing to add."""
    async with relayed(answering(whole(b'{"error": {}}', status, headers))) as (client, _, _):
        answer = await client.ask(CHAT, BODY)
        assert (answer.status, answer.body) == (int(status[:3]), b'{"error": {}}')
        assert answer.values(b"retry-after") == ([b"7"] if headers else [])


async def test_a_replica_that_fails_before_its_answer_is_a_502() -> None:
    """As an envelope, with the client's connection whole."""

    async def script(peer: Peer) -> None:
        await peer.request()

    async with relayed(script, answering(whole(b"{}"))) as (client, _, _):
        answer = await client.ask(CHAT, BODY)
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_protocol_error")
        assert (await client.ask(CHAT, BODY)).status == 200


async def test_a_silent_replica_is_a_504() -> None:
    """After the limit, not never."""
    async with relayed(silent, first_byte_timeout_s=0.02) as (client, replica, _):
        answer = await client.ask(CHAT, BODY)
        assert (answer.status, error_of(answer)["code"]) == (504, "upstream_timeout")
        await replica.ended[1].wait()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
async def test_a_stream_cut_between_events_gets_an_error_event(line_end: bytes) -> None:
    """The client learns why, in the protocol it reads, and sees no [DONE]."""
    event = HELLO.replace(b"\n", line_end)

    async def script(peer: Peer) -> None:
        await peer.answer(chunked(event, headers=EVENTS, end=b""))

    async with relayed(script) as (client, _, _):
        answer = await client.ask(CHAT, BODY)
        assert answer.status == 200
        last = answer.body.removeprefix(event)
        assert last.startswith(b"data: ")
        assert last.endswith(b"\n\n")
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert (error["type"], error["code"]) == ("upstream_error", "upstream_protocol_error")


async def test_a_stream_cut_before_its_first_event_gets_an_error_event() -> None:
    """Its head is out, so there is no other way to tell."""

    async def script(peer: Peer) -> None:
        await peer.answer(chunked(headers=EVENTS, end=b""))

    async with relayed(script) as (client, _, _):
        assert b"upstream_protocol_error" in (await client.ask(CHAT, BODY)).body


async def test_a_stream_cut_inside_an_event_breaks_the_connection() -> None:
    """An error event would become part of the broken one; an incomplete read cannot be mistaken."""

    async def script(peer: Peer) -> None:
        await peer.answer(chunked(HELLO, HELLO[:-1], headers=EVENTS, end=b""))

    async with relayed(script) as (client, _, _):
        await client.request(CHAT, BODY)
        await client.head()
        received = b""
        while received != HELLO + HELLO[:-1]:
            received += await client.piece()
        with pytest.raises(h11.RemoteProtocolError):
            await client.piece()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
async def test_a_stream_cut_after_its_last_event_is_whole(line_end: bytes) -> None:
    """An error after [DONE] would be a second end."""
    text = (HELLO + DONE).replace(b"\n", line_end)

    async def script(peer: Peer) -> None:
        await peer.answer(chunked(text, headers=EVENTS, end=b""))

    async with relayed(script) as (client, _, _):
        assert (await client.ask(CHAT, BODY)).body == text


@pytest.mark.parametrize(
    "answer",
    [
        chunked(b'{"a": 1}\n\n', headers=b"content-type: application/json\r\n", end=b""),
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n" + EVENTS + b"\r\n" + HELLO,
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhello",
    ],
    ids=["json", "events-with-length", "plain"],
)
async def test_any_other_answer_cut_short_breaks_the_connection(answer: bytes) -> None:
    """Nothing can be added to a JSON document or past a declared length."""

    async def script(peer: Peer) -> None:
        await peer.answer(answer)

    async with relayed(script) as (client, _, _):
        with pytest.raises(h11.RemoteProtocolError):
            await client.ask(CHAT, BODY)


async def test_a_gap_in_a_stream_gets_an_error_event() -> None:
    """A replica that hangs is told from one that is done."""

    async def script(peer: Peer) -> None:
        await peer.answer(chunked(HELLO, headers=EVENTS, end=b""))
        await peer.gone()

    async with relayed(script, gap_timeout_s=0.02) as (client, replica, _):
        assert b"upstream_timeout" in (await client.ask(CHAT, BODY)).body
        await replica.ended[1].wait()


class TestClientLeaves:
    """The replica sees its connection close, whatever it was doing."""

    async def test_before_the_head(self) -> None:
        """Most of the time of an answer that is not streamed."""
        asked = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            asked.set()
            await peer.gone()

        async with relayed(script) as (client, replica, gateway):
            await client.request(CHAT, BODY)
            await asked.wait()
            client.leave()
            await replica.ended[1].wait()
            assert await gateway.drain.wait_idle(5)

    async def test_between_two_pieces(self) -> None:
        """While the gateway waits for the replica."""

        async def script(peer: Peer) -> None:
            await peer.answer(chunked(HELLO, headers=EVENTS, end=b""))
            await peer.gone()

        async with relayed(script) as (client, replica, gateway):
            await client.request(CHAT, BODY)
            await client.head()
            assert await client.piece() == HELLO
            client.leave()
            await replica.ended[1].wait()
            assert await gateway.drain.wait_idle(5)

    async def test_while_reading_too_slowly(self) -> None:
        """While the gateway waits for the client, and the replica for the gateway."""
        sent = 0

        async def script(peer: Peer) -> None:
            nonlocal sent
            await peer.answer(chunked(headers=EVENTS, end=b""))
            while True:
                await peer.send(b"10000\r\n%b\r\n" % (b"x" * 0x10000))
                sent += 1

        async with relayed(script) as (client, replica, gateway):
            await client.request(CHAT, BODY)
            before = -1
            while before != sent:  # until nothing moves: every buffer on the way is full
                before = sent
                for _ in range(50):
                    await asyncio.sleep(0)
            client.leave()
            await replica.ended[1].wait()
            assert await gateway.drain.wait_idle(5)
