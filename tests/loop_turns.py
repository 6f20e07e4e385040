"""Waiting for what has no event: turn by turn of the event loop, without letting time pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(is_true: Callable[[], bool]) -> None:
    """Lets the event loop run until a condition holds; put a time limit around it."""
    while not is_true():  # noqa: ASYNC110 (the objects under test have no event for it)
        await asyncio.sleep(0)
