"""The upstream client's tests run on both event loops: their transports close and pause differently."""

from __future__ import annotations

from asyncio import AbstractEventLoop, new_event_loop
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    """Both loops."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": new_event_loop}
