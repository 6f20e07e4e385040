"""Asking the gateway, as any client would, whether what was started really serves."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec

from penstock.base.errors import PenstockError
from penstock.gateway.upstream.pool import Call, Pool

PAUSE_S = 0.1


class _Readiness(msgspec.Struct, frozen=True):
    """What /readyz says."""

    replicas: dict[str, dict[str, bool]]


_READINESS = msgspec.json.Decoder(_Readiness)


async def wait_served(gateway: Pool, models: Collection[str]) -> list[str]:
    """Waits until each of `models` has a ready replica; gives the gateway's models that then have none.

    It waits for ever if that never comes: cancel it to stop.
    """
    while True:
        try:
            states = await _ask(gateway)
        except PenstockError:  # the gateway may be being restarted
            states = {}
        waiting = sorted(name for name, replicas in states.items() if not any(replicas.values()))
        if states and not set(models) & set(waiting):
            return waiting
        await asyncio.sleep(PAUSE_S)


async def _ask(gateway: Pool) -> dict[str, dict[str, bool]]:
    pieces = []
    async with gateway.request(Call("GET", "/readyz")) as answer:
        while (piece := await answer.read()) is not None:
            pieces.append(piece)
    return _READINESS.decode(b"".join(pieces)).replicas
