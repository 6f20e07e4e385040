"""Cached prefixes over the wire: told truly, and shared only where the salt is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from asgi_call import Call
from scripted_replica import BLOCK_SIZE, END, Desk, replica

HELLO = [*b"Hello", END]
TEXT = "once upon a time"  # a token per byte


async def cached(call: Call) -> int:
    """What the answer says was found."""
    answer = await call.answer()
    assert answer.status == 200
    found: int = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_only_requests_of_the_same_salt_share(checkpoint: Path, kind: str) -> None:
    """No salt is a salt too. What is found is whole blocks, and the counter of hits agrees."""
    async with replica(checkpoint, HELLO) as desk:

        def ask(desk: Desk, text: str, **fields: str) -> Call:
            return getattr(desk, kind)(text, **fields)  # type: ignore[no-any-return]

        assert await cached(ask(desk, TEXT)) == 0
        assert await cached(ask(desk, TEXT, cache_salt="one")) == 0
        assert await cached(ask(desk, TEXT, cache_salt="two")) == 0
        found = await cached(ask(desk, TEXT, cache_salt="one"))
        assert found >= len(TEXT) - BLOCK_SIZE
        assert await cached(ask(desk, TEXT)) == found
        assert 0 < await cached(ask(desk, TEXT[:8] + "!" * 8)) < found
        assert desk.core.stats().prefix_hit_tokens > 2 * found


async def test_a_salt_that_is_empty_or_too_long_is_a_400(checkpoint: Path) -> None:
    """It names the field."""
    async with replica(checkpoint, HELLO) as desk:
        for salt in ("", "s" * 129):
            answer = await desk.chat(cache_salt=salt).answer()
            assert (answer.status, answer.error["param"]) == (400, "cache_salt")
