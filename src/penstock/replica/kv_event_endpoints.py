"""/v1/kv/events: what enters and leaves the prefix cache, as a stream that begins with all that is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange, unless_gone
from penstock.base.errors import CapacityError
from penstock.engine.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent, KVEventLog
from penstock.engine.service import EngineService
from penstock.protocol import sse

MAX_FOLLOWERS = 8
# Batches that wait for a follower who reads slowly; then it is told the whole again.
MAX_WAITING = 256
# Events in one message: a whole cache comes in several.
MAX_EVENTS = 512
RETRY_AFTER_S = 5


class _Batch(msgspec.Struct, frozen=True):
    """Events in the order in which they happened; `seq` rises by one from batch to batch."""

    seq: int
    events: list[dict[str, object]]


class KVEventEndpoints:
    """Passes an engine's events on to those who follow it."""

    def __init__(self, service: EngineService, log: KVEventLog) -> None:
        """The service has not been started."""
        self._service = service
        self._log = log
        self._seq = 0
        self._followers: set[asyncio.Queue[_Batch | None]] = set()
        service.after_work = self._pass_on

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoint, for an application's table."""
        return {("GET", "/v1/kv/events"): Endpoint(self._follow, is_work=False)}

    def _pass_on(self) -> None:
        """On the engine's thread."""
        if events := self._log.take():
            self._service.tell(self._publish, events)

    def _publish(self, events: list[KVEvent]) -> None:
        self._seq += 1
        if not self._followers:
            return
        batch = _Batch(self._seq, [_shape(event) for event in events])
        for queue in self._followers:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)  # it has missed some
            else:
                queue.put_nowait(batch)

    async def _follow(self, exchange: Exchange) -> None:
        if len(self._followers) >= MAX_FOLLOWERS:
            raise CapacityError(
                f"{MAX_FOLLOWERS} others follow these events already", retry_after_s=RETRY_AFTER_S
            )
        queue: asyncio.Queue[_Batch | None] = asyncio.Queue(MAX_WAITING)
        self._followers.add(queue)
        try:
            await unless_gone(exchange, self._send(exchange, queue))
        finally:
            self._followers.discard(queue)

    async def _send(self, exchange: Exchange, queue: asyncio.Queue[_Batch | None]) -> None:
        await exchange.start(200, [(b"content-type", sse.CONTENT_TYPE), (b"cache-control", b"no-cache")])
        batch: _Batch | None = None
        while True:
            if batch is None:
                # Between two pieces of the engine's work, all events before are on their way to the loop, and
                # reach it before this does.
                whole = await self._service.call(lambda core: list(self._log.whole()))
                while not queue.empty():
                    queue.get_nowait()  # the whole has them
                for events in _cut(whole):
                    await self._write(exchange, _Batch(self._seq, [_shape(event) for event in events]))
            else:
                await self._write(exchange, batch)
            batch = await queue.get()

    async def _write(self, exchange: Exchange, batch: _Batch) -> None:
        await exchange.write(sse.encode_event(msgspec.json.encode(batch)))


def _cut(events: list[KVEvent]) -> Iterable[list[KVEvent]]:
    return (events[start : start + MAX_EVENTS] for start in range(0, len(events), MAX_EVENTS))


def _shape(event: KVEvent) -> dict[str, object]:
    """vLLM's names; hashes as text, since JavaScript cannot hold them as numbers."""
    match event:
        case BlockStored(block_hash, parent_hash, tokens, is_salted):
            return {
                "type": "BlockStored",
                "block_hashes": [f"{block_hash:016x}"],
                "parent_block_hash": None if parent_hash is None else f"{parent_hash:016x}",
                "token_ids": tokens,
                "block_size": len(tokens),
                "is_salted": is_salted,
            }
        case BlockRemoved(block_hash):
            return {"type": "BlockRemoved", "block_hashes": [f"{block_hash:016x}"]}
        case AllBlocksCleared():
            return {"type": "AllBlocksCleared"}
