"""Identifiers: unique, sortable, easy to read aloud."""

from __future__ import annotations

import re
import time

from penstock.base.ids import new_id


def number(identifier: str) -> int:
    """The 128 bits of an id."""
    value = 0
    for character in identifier.rpartition("-")[2]:
        value = value * 32 + "0123456789abcdefghjkmnpqrstvwxyz".index(character)
    return value


def test_ids_have_the_prefix_and_26_letters() -> None:
    """Crockford's alphabet has no i, l, o, u."""
    assert re.fullmatch(r"chat-cmpl-[0-9a-hjkmnp-tv-z]{26}", new_id("chat-cmpl"))


def test_ids_do_not_repeat() -> None:
    """80 random bits."""
    assert len({new_id("req") for _ in range(10_000)}) == 10_000


def test_ids_carry_the_time_first() -> None:
    """So that they sort by it: the top 48 bits are Unix milliseconds."""
    before = time.time_ns() // 1_000_000
    milliseconds = number(new_id("req")) >> 80
    assert before <= milliseconds <= time.time_ns() // 1_000_000
