"""One request and its one answer, whatever the client does."""

from __future__ import annotations

import asyncio

import pytest

from penstock.asgi.exchange import Exchange, unless_gone
from penstock.asgi.types import Message
from penstock.base.errors import (
    BodyTooLargeError,
    ClientGoneError,
    RequestTimeoutError,
    UpstreamError,
)
from scripted_client import ScriptedClient, http_scope


def exchange_with(client: ScriptedClient, *headers: tuple[bytes, bytes], method: str = "POST") -> Exchange:
    return Exchange(http_scope(method, headers=headers), client.receive, client.send)


async def test_a_body_is_read_whole() -> None:
    """In however many pieces it comes."""
    for pieces in ((b"hello",), (b"he", b"", b"llo"), (b"", b"hello", b"")):
        assert await exchange_with(ScriptedClient(*pieces)).read_body(5, 5) == b"hello"


async def test_a_body_over_the_limit_is_refused() -> None:
    """By what it declares before a byte is read, and by what it sends if it declared nothing or lied."""
    declared = exchange_with(ScriptedClient(stalls=True), (b"content-length", b"6"))
    lying = exchange_with(ScriptedClient(b"abc", b"def", stalls=True), (b"content-length", b"1"))
    silent = exchange_with(ScriptedClient(b"abc", b"def", stalls=True))
    for exchange in (declared, lying, silent):
        with pytest.raises(BodyTooLargeError):
            await exchange.read_body(5, 5)


async def test_a_body_that_stalls_times_out() -> None:
    """A client that sends half a body holds its place only so long."""
    with pytest.raises(RequestTimeoutError):
        await exchange_with(ScriptedClient(b"he", stalls=True)).read_body(5, 0.01)


async def test_a_body_is_read_in_parts() -> None:
    """As they come, empty ones left out; after the last there is none, however often one asks."""
    for pieces in ((b"hello",), (b"he", b"", b"llo"), (b"", b"hello", b"")):
        exchange = exchange_with(ScriptedClient(*pieces))
        parts = []
        while (part := await exchange.read_chunk(5)) is not None:
            parts.append(part)
        assert parts == [piece for piece in pieces if piece]
        assert await exchange.read_chunk(5) is None


async def test_a_part_that_does_not_come_times_out() -> None:
    """Each part has the time by itself."""
    exchange = exchange_with(ScriptedClient(b"he", stalls=True))
    assert await exchange.read_chunk(0.01) == b"he"
    with pytest.raises(RequestTimeoutError):
        await exchange.read_chunk(0.01)


async def test_leaving_between_two_parts_is_told() -> None:
    """As it is for a whole body."""
    client = ScriptedClient(b"he", stalls=True)
    exchange = exchange_with(client)
    await exchange.read_chunk(5)
    client.leave()
    with pytest.raises(ClientGoneError):
        await exchange.read_chunk(5)


async def test_leaving_while_sending_is_told() -> None:
    """It is no malformed request."""
    client = ScriptedClient(b"he", stalls=True)
    reading = asyncio.ensure_future(exchange_with(client).read_body(5, 5))
    await asyncio.sleep(0)
    client.leave()
    with pytest.raises(ClientGoneError):
        await reading


async def test_an_answer_states_its_length_type_and_request_id() -> None:
    """The id is the client's own if it sent a usable one."""
    client = ScriptedClient()
    exchange = exchange_with(client, (b"x-request-id", b"mine"))
    await exchange.respond(201, b"{}", headers=[(b"x-own", b"1")])
    assert (client.statuses, client.body, client.is_whole) == ([201], b"{}", True)
    assert client.headers == {
        b"content-type": b"application/json", b"content-length": b"2",
        b"x-own": b"1", b"x-request-id": b"mine",
    }  # fmt: skip
    assert exchange.is_complete


@pytest.mark.parametrize("given", [b"", b"a b", b"a\x7f", b"a\xc3\xbc", b"x" * 129])
async def test_an_unusable_request_id_is_replaced(given: bytes) -> None:
    """A new one each time: logs and headers take only visible ASCII."""
    ids = {exchange_with(ScriptedClient(), (b"x-request-id", given)).request_id for _ in range(3)}
    assert len(ids) == 3
    assert all(own.startswith("req-") for own in ids)


async def test_an_answer_to_head_has_no_body() -> None:
    """But the length that it would have."""
    client = ScriptedClient()
    await exchange_with(client, method="HEAD").respond(200, b"hello")
    assert (client.headers[b"content-length"], client.body) == (b"5", b"")


async def test_a_second_answer_is_a_defect() -> None:
    """It never reaches the client."""
    client = ScriptedClient()
    exchange = exchange_with(client)
    await exchange.respond(200, b"")
    with pytest.raises(AssertionError):
        await exchange.respond(500, b"")
    assert client.statuses == [200]


@pytest.mark.parametrize("failure", [RuntimeError("the handler is closed"), BrokenPipeError()])
async def test_a_send_that_fails_says_that_the_client_left(failure: Exception) -> None:
    """uvloop raises it of a closed connection; it is no defect of ours."""

    async def send(message: Message) -> None:
        raise failure

    with pytest.raises(ClientGoneError):
        await Exchange(http_scope(), ScriptedClient().receive, send).respond(200, b"")


class TestUnlessGone:
    """Work runs until it ends or its client leaves."""

    async def test_work_that_ends_ends_it(self) -> None:
        """The client is still there and hears the answer."""
        client = ScriptedClient()
        exchange = exchange_with(client)
        await exchange.read_body(1, 1)
        await unless_gone(exchange, exchange.respond(200, b"done"))
        assert client.body == b"done"

    @pytest.mark.parametrize("num_written", [None, 0, 1, 2])
    async def test_work_is_cancelled_when_the_client_leaves(self, num_written: int | None) -> None:
        """Before the answer, after its head, after pieces of it: at once and awaited."""
        client = ScriptedClient()
        exchange = exchange_with(client)
        await exchange.read_body(1, 1)
        waiting, cleaned = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            try:
                if num_written is not None:
                    await exchange.start(200, [])
                    for _ in range(num_written):
                        await exchange.write(b"x")
                waiting.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.set()

        running = asyncio.ensure_future(unless_gone(exchange, work()))
        await waiting.wait()
        client.leave()
        with pytest.raises(ClientGoneError):
            await running
        assert cleaned.is_set()

    async def test_leaving_after_a_whole_answer_is_no_failure(self) -> None:
        """The answer was handed over; what work remains is only tidied up."""
        client = ScriptedClient()
        exchange = exchange_with(client)
        await exchange.read_body(1, 1)

        async def work() -> None:
            await exchange.respond(200, b"done")
            await asyncio.Event().wait()

        await unless_gone(exchange, work())
        assert exchange.is_complete

    @pytest.mark.parametrize("failure", [UpstreamError("broken"), ValueError("defect")])
    async def test_a_failure_comes_out_as_it_is(self, failure: Exception) -> None:
        """Not wrapped in a group, so that it finds its handler."""
        exchange = exchange_with(client := ScriptedClient())
        await exchange.read_body(1, 1)

        async def work() -> None:
            await asyncio.sleep(0)
            raise failure

        with pytest.raises(type(failure)) as caught:
            await unless_gone(exchange, work())
        assert caught.value is failure
        assert not client.sent

    async def test_a_failure_while_being_cancelled_comes_out(self) -> None:
        """A defect in cleaning up is not hidden by the client's leaving."""
        exchange = exchange_with(client := ScriptedClient())
        await exchange.read_body(1, 1)

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("defect")

        running = asyncio.ensure_future(unless_gone(exchange, work()))
        for _ in range(3):
            await asyncio.sleep(0)
        client.leave()
        with pytest.raises(ValueError, match="defect"):
            await running

    async def test_cancelling_it_cancels_the_work(self) -> None:
        """At every turn of the loop, the first included, when the work has not begun."""
        for turns in range(5):
            exchange = exchange_with(ScriptedClient())
            await exchange.read_body(1, 1)
            began, ended = [], []

            async def work(began: list[int] = began, ended: list[int] = ended) -> None:
                began.append(1)
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(1)

            running = asyncio.ensure_future(unless_gone(exchange, work()))
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns == 0:  # it did not get as far as taking over the work
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert began == ended
