"""Clients of KV transfers that leave, stall or come too many: nothing stays locked, requests go on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from asgi_call import Call
from kv_replica import BLOCK, TEXT, blocks_in, error_of, replica, write_model
from penstock.asgi.settings import HttpLimits
from penstock.asgi.types import Message
from penstock.base.errors import CapacityError, RequestTimeoutError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer that fits."""
    return write_model(tmp_path_factory.mktemp("model"))


async def test_a_client_that_leaves_while_exporting_leaves_nothing_locked(directory: Path) -> None:
    """At whatever turn of the event loop it leaves; the engine is whole and the next export complete."""
    async with replica(directory) as desk:
        await desk.ask()
        assert desk.model.kv is not None
        desk.model.kv.batch_blocks = 1
        whole = await desk.export(prompt=TEXT)
        for turns in range(0, 60, 3):
            call = desk.post("export", {"model": "m", "prompt": TEXT})
            for _ in range(turns):
                await asyncio.sleep(0)
            call.leave()
            await call.ended()
            await desk.model.service.call(lambda _: desk.check())
        assert await desk.export(prompt=TEXT) == whole


class SlowCall(Call):
    """A client that takes the head of an answer and then reads nothing until it is let."""

    def __init__(self, *arguments: Any) -> None:
        self.is_waited_for, self.reads = asyncio.Event(), asyncio.Event()
        super().__init__(*arguments)

    async def _send(self, message: Message) -> None:
        await super()._send(message)
        if message["type"] == "http.response.body":
            self.is_waited_for.set()
            await self.reads.wait()


async def test_requests_take_the_room_of_what_a_slow_client_exports(directory: Path) -> None:
    """They do not wait, and the client sees that its archive was broken off; what it got is right."""
    async with (
        replica(directory, max_sequences=1, max_model_len=512) as desk,
        replica(directory) as other,
    ):
        assert desk.model.kv is not None
        desk.model.kv.batch_blocks = 3
        said, _ = await desk.ask()
        pieces = [json.dumps({"model": "m", "prompt": TEXT}).encode()]
        slow = SlowCall(desk.application, "POST", "/v1/kv/export", pieces, ())
        await slow.is_waited_for.wait()
        await desk.ask("x" * 200)
        slow.reads.set()
        await slow.ended()  # there was room for both
        assert blocks_in(slow.seen().body, desk) == len(TEXT) // BLOCK
        slow = SlowCall(desk.application, "POST", "/v1/kv/export", pieces, ())
        await slow.is_waited_for.wait()
        await desk.ask("y" * 490)
        slow.reads.set()
        with pytest.raises(CapacityError, match="were being exported"):
            await slow.ended()
        assert not slow.seen().is_complete
        await desk.model.service.call(lambda _: desk.check())
        reply = await other.bring(slow.seen().body)
        assert reply["reason"] == "the archive is cut short"
        assert await other.ask() == (said, reply["reusable_tokens"])


async def test_a_client_that_never_reads_is_given_up(directory: Path) -> None:
    """After `body_timeout_s` its export breaks off, and nothing stays locked."""
    async with replica(directory, HttpLimits(body_timeout_s=0.05)) as desk:
        await desk.ask()
        pieces = [json.dumps({"model": "m", "prompt": TEXT}).encode()]
        deaf = SlowCall(desk.application, "POST", "/v1/kv/export", pieces, ())
        with pytest.raises(RequestTimeoutError):
            await deaf.ended()
        assert not deaf.seen().is_complete
        await desk.model.service.call(lambda _: desk.check())


async def test_a_client_that_leaves_while_importing_leaves_nothing_locked(directory: Path) -> None:
    """What came before it left may stay; it is right."""
    async with replica(directory) as here, replica(directory) as there:
        said, _ = await here.ask()
        archive = await here.export(prompt=TEXT)
        for size in range(0, len(archive), len(archive) // 7):
            call = Call(there.application, "POST", "/v1/kv/import", None, ())
            call._inbox.put_nowait({"type": "http.request", "body": archive[:size], "more_body": True})
            await asyncio.sleep(0)
            call.leave()
            await call.ended()
            assert not call.sent
            await there.model.service.call(lambda _: there.check())
        assert (await there.ask())[0] == said


async def test_transfers_are_bounded(directory: Path) -> None:
    """One more is told to come back; when one has ended there is room again."""
    async with replica(directory) as desk:
        stalled = [Call(desk.application, "POST", "/v1/kv/import", None, ()) for _ in range(4)]
        await asyncio.sleep(0)
        refused = await desk.post("export", {"model": "m", "prompt": "a"}).answer()
        assert error_of(refused) == (503, "over_capacity", None)
        assert refused.headers[b"retry-after"] == b"1"
        stalled[0].leave()
        await stalled[0].ended()
        await desk.export(prompt="a")
        for call in stalled[1:]:
            call.leave()
            await call.ended()


async def test_an_import_that_stalls_ends(directory: Path) -> None:
    """Its place is free again after `body_timeout_s`."""
    async with replica(directory, HttpLimits(body_timeout_s=0.01)) as desk:
        answer = await Call(desk.application, "POST", "/v1/kv/import", None, ()).answer()
        assert error_of(answer) == (408, "request_timeout", None)
