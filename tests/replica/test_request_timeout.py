"""The time that a request sets itself: read strictly, kept from arrival to end."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from asgi_call import GUARD_S, Call
from loop_turns import until
from penstock.base.errors import InvalidRequestError
from penstock.replica.request_timeout import read_request_timeout
from scripted_replica import END, MODEL, Desk, replica

HELLO = [*b"Hello", END]


@pytest.mark.parametrize(("given", "seconds"), [(b"2", 2.0), (b"0.5", 0.5), (b" 1e3 ", 1000.0)])
def test_a_positive_number_of_seconds_is_read(given: bytes, seconds: float) -> None:
    """Fractions too; without the header there is no limit."""
    assert read_request_timeout({b"x-request-timeout": given}) == seconds
    assert read_request_timeout({}) == math.inf


@pytest.mark.parametrize("given", [b"", b"0", b"-1", b"inf", b"nan", b"5s", b"1,5", "½".encode(), b"9" * 400])
def test_anything_else_is_refused_by_name(given: bytes) -> None:
    """A typo must not mean no limit."""
    with pytest.raises(InvalidRequestError, match="x-request-timeout") as caught:
        read_request_timeout({b"x-request-timeout": given})
    assert len(caught.value.message) < 200


def timed(desk: Desk, seconds: bytes, **fields: object) -> Call:
    """A chat that may take so long."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
    return desk.call("POST", "/v1/chat/completions", body, headers=[(b"x-request-timeout", seconds)])


async def test_a_bad_limit_is_a_400(checkpoint: Path) -> None:
    """Over the wire as well."""
    async with replica(checkpoint, HELLO) as desk:
        answer = await timed(desk, b"soon").answer()
        assert (answer.status, answer.error["param"]) == (400, "x-request-timeout")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_whose_time_is_up_is_a_504(checkpoint: Path, stream: bool) -> None:
    """It has waited too long; the one that runs is not touched."""
    now = [100.0]
    async with replica(checkpoint, HELLO, max_sequences=1, clock=lambda: now[0]) as desk:
        desk.forward.hold()
        first = timed(desk, b"60")
        await desk.forward.begun()
        late = timed(desk, b"5", stream=stream)
        async with asyncio.timeout(GUARD_S):
            await until(lambda: desk.model.service.num_requests == 2)
        now[0] = 106.0
        desk.forward.let()
        answer = await late.answer()
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        assert "5 s" in answer.error["message"]
        assert (await first.answer()).status == 200


async def test_a_stream_whose_time_is_up_ends_with_one_event(checkpoint: Path) -> None:
    """The text so far stays; there is no end mark."""
    now = [100.0]
    async with replica(checkpoint, HELLO, clock=lambda: now[0]) as desk:
        desk.forward.hold()
        call = timed(desk, b"5", stream=True)
        await desk.forward.begun()
        desk.forward.let(1)
        await desk.forward.begun()
        now[0] = 106.0
        desk.forward.let()
        answer = await call.answer()
        assert answer.status == 200
        assert json.loads(answer.events[-1])["error"]["code"] == "deadline_exceeded"
        assert b"[DONE]" not in answer.events
