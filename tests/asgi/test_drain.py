"""Counting running requests, and refusing new ones."""

from __future__ import annotations

import asyncio

import pytest

from penstock.asgi.drain import RETRY_AFTER_S, Drain
from penstock.base.errors import DrainingError


async def test_requests_are_counted_however_they_end() -> None:
    """A count that drifts would hang every shutdown."""
    drain = Drain()
    with drain, drain:
        assert drain.num_running == 2
    with pytest.raises(ValueError, match="x"), drain:
        raise ValueError("x")
    assert drain.num_running == 0
    assert await drain.wait_idle(0)


async def test_a_draining_server_refuses_with_a_time_to_come_back() -> None:
    """503 with Retry-After; the refused one is not counted."""
    drain = Drain()
    drain.begin()
    with pytest.raises(DrainingError) as caught, drain:
        pytest.fail("it was let in")
    assert (caught.value.status, caught.value.retry_after_s) == (503, RETRY_AFTER_S)
    assert drain.num_running == 0


async def test_waiting_ends_with_the_last_request() -> None:
    """Not with the first."""
    drain = Drain()
    with drain:
        with drain:
            drain.begin()
            waiting = asyncio.ensure_future(drain.wait_idle(5))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


async def test_waiting_ends_at_the_deadline() -> None:
    """A stuck request must not keep a server from stopping."""
    drain = Drain()
    with drain:
        assert not await drain.wait_idle(0.01)
