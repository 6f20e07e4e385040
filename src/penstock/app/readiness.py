"""Asking the gateway, as any client would, whether what was started really serves."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from penstock.base.errors import PenstockError
from penstock.gateway.upstream.pool import Call, Pool

PAUSE_S = 0.1


class _Readiness(msgspec.Struct, frozen=True):
    """What /readyz says."""

    replicas: dict[str, dict[str, bool]] = {}
    models: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Served:
    """The models that no replica of theirs serves at the moment, sorted by name."""

    not_ready: list[str]
    asleep: list[str]
    """Requests for these are served all the same, after a wait."""


_READINESS = msgspec.json.Decoder(_Readiness)


async def wait_served(gateway: Pool, models: Collection[str]) -> Served:
    """Waits until each of `models` has a ready replica; gives the gateway's models that then have none.

    It waits for ever if that never comes: cancel it to stop.
    """
    while True:
        try:
            said = await _ask(gateway)
        except PenstockError:  # the gateway may be being restarted
            said = _Readiness()
        waiting = sorted(name for name, replicas in said.replicas.items() if not any(replicas.values()))
        if said.replicas and not set(models) & set(waiting):
            asleep = [name for name in waiting if said.models.get(name) in ("asleep", "loading", "unloading")]
            return Served([name for name in waiting if name not in asleep], asleep)
        await asyncio.sleep(PAUSE_S)


async def _ask(gateway: Pool) -> _Readiness:
    pieces = []
    async with gateway.request(Call("GET", "/readyz")) as answer:
        while (piece := await answer.read()) is not None:
            pieces.append(piece)
    return _READINESS.decode(b"".join(pieces))
