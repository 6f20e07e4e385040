"""Cached KV by HTTP: a prompt's pages out of one replica and into another, in parts, between engine steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange, unless_gone
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import (
    BodyTooLargeError,
    CapacityError,
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    RequestTimeoutError,
)
from penstock.engine.block_tables import Pin
from penstock.engine.kv_archive import (
    MAX_HEADER_BYTES,
    MAX_ROOT_BYTES,
    NOT_AN_ARCHIVE,
    ArchiveReader,
    ArchiveWriter,
    Record,
)
from penstock.engine.kv_pages import Page
from penstock.engine.kv_store import BATCH_BYTES, Incoming, KVStore
from penstock.observe import engine_names as names
from penstock.observe import metrics as observe
from penstock.protocol.kv import ExportRequest, ImportReply, KVBlocks, KVStats, read_export_request
from penstock.replica import conversation
from penstock.replica.model import ServedModel

ARCHIVE = b"application/octet-stream"
TOKENS_HEADER = b"x-penstock-kv-tokens"
# Exports and imports at a time: each holds a few batches in memory.
MAX_TRANSFERS = 4
RETRY_AFTER_S = 1


class KVEndpoints:
    """Export, import and what there is to know about both."""

    def __init__(self, model: ServedModel, store: KVStore, limits: HttpLimits) -> None:
        self._model = model
        self._store = store
        self._limits = limits
        self._num_transfers = 0

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        table = {("GET", "/v1/kv/stats"): Endpoint(self._tell, is_work=False)}
        if self._model.serves_kv:
            table |= {
                ("POST", "/v1/kv/export"): Endpoint(self._export),
                ("POST", "/v1/kv/import"): Endpoint(self._import),
            }
        return table

    def readings(self) -> Iterator[observe.Reading]:
        """For the metrics."""
        counts = self._store.counts
        yield names.KV_MOVED, ("restored",), counts.restored
        yield names.KV_MOVED, ("imported",), counts.imported
        yield names.KV_MOVED, ("exported",), counts.exported

    async def _tell(self, exchange: Exchange) -> None:
        stats, shape, counts = self._model.service.stats(), self._store.shape, self._store.counts
        reply = KVStats(
            fingerprint=dict(shape.fingerprint),
            block_size=shape.block_size,
            block_bytes=shape.block_bytes,
            blocks=KVBlocks(
                free=stats.num_free_blocks, cached=stats.num_cached_blocks, held=stats.num_held_blocks
            ),
            restored_blocks=counts.restored,
            imported_blocks=counts.imported,
            exported_blocks=counts.exported,
        )
        await exchange.respond(200, msgspec.json.encode(reply))

    async def _export(self, exchange: Exchange) -> None:
        limits = self._limits
        request = read_export_request(await exchange.read_body(limits.max_body_bytes, limits.body_timeout_s))
        self._model.check_name(request.model)
        with self._transfer():
            # Off the event loop: rendering and tokenising a long conversation takes milliseconds.
            tokens = await asyncio.to_thread(self._tokens, request)
            await unless_gone(exchange, self._send(exchange, request.cache_salt or "", tokens))

    def _tokens(self, request: ExportRequest) -> list[int]:
        if request.prompt is None:
            tokens = conversation.encode(self._model, request.chat)
        else:
            tokens = conversation.encode_prompt(self._model, request.prompt)
        if len(tokens) > self._model.max_model_len:
            raise ContextLengthError(
                f"the context is {self._model.max_model_len} tokens and the prompt has {len(tokens)} tokens",
                param="messages" if request.prompt is None else "prompt",
            )
        return tokens

    async def _send(self, exchange: Exchange, salt: str, tokens: list[int]) -> None:
        """Answers with what is cached of a prompt, which is kept from eviction meanwhile."""
        service, store = self._model.service, self._store
        pins: list[Pin] = []
        try:
            await service.call(lambda _: pins.append(store.pin(salt, tokens)))
            await self._send_pinned(exchange, pins[0])
        finally:
            with contextlib.suppress(EngineError):  # then nobody evicts any more
                # If we were cancelled while it was being pinned, that is done before this is.
                await service.call(lambda _: store.unpin(pins))

    async def _send_pinned(self, exchange: Exchange, pin: Pin) -> None:
        store, path = self._store, pin.path
        writer = ArchiveWriter(store.shape, len(path))
        root = writer.root(pin.salt)[1] if path else b""
        size = len(writer.head) + len(root) + len(path) * store.shape.record_bytes
        await exchange.start(
            200,
            [
                (b"content-type", ARCHIVE),
                (b"content-length", str(size).encode()),
                (TOKENS_HEADER, str(len(path) * store.shape.block_size).encode()),
            ],
        )
        await self._write(exchange, writer.head + root)
        for start in range(0, len(path), store.batch_blocks):
            pages = await self._read(pin, start, min(start + store.batch_blocks, len(path)))
            await self._write(exchange, await asyncio.to_thread(_records, writer, start, pin, pages))
        await exchange.finish()

    async def _read(self, pin: Pin, start: int, end: int) -> NDArray[np.uint8]:
        pages = await self._model.service.call(lambda _: self._store.read_pinned(pin, start, end))
        if pages is None:
            raise CapacityError(
                "requests needed the blocks that were being exported", retry_after_s=RETRY_AFTER_S
            )
        return pages

    async def _write(self, exchange: Exchange, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                await exchange.write(data)
        except TimeoutError as error:
            raise RequestTimeoutError("the client took nothing of the archive for too long") from error

    async def _import(self, exchange: Exchange) -> None:
        with self._transfer():
            reader, incoming = ArchiveReader(self._store.shape), self._store.importing()
            size, pending = 0, bytearray()
            while (chunk := await self._next_chunk(exchange, size)) is not None:
                size += len(chunk)
                if reader.problem is None:
                    pending += chunk
                if len(pending) >= BATCH_BYTES:
                    await self._take(reader, incoming, bytes(pending))
                    pending.clear()
            await self._take(reader, incoming, bytes(pending))
            reader.close()
            if reader.problem == NOT_AN_ARCHIVE or not size:
                raise InvalidRequestError(
                    "the body is no KV archive; send what /v1/kv/export of another replica answered"
                )
            reusable = await self._model.service.call(lambda _: incoming.count_reusable_tokens())
        num_blocks = 0 if reader.header is None else reader.header.num_blocks
        reply = ImportReply(
            tokens=num_blocks * self._store.shape.block_size,
            reusable_tokens=reusable,
            imported_blocks=incoming.num_placed,
            known_blocks=incoming.num_known,
            dropped_blocks=num_blocks - incoming.num_placed - incoming.num_known,
            reason=reader.problem or incoming.problem,
        )
        await exchange.respond(200, msgspec.json.encode(reply))

    async def _next_chunk(self, exchange: Exchange, size: int) -> bytes | None:
        chunk = await exchange.read_chunk(self._limits.body_timeout_s)
        if chunk is not None and size + len(chunk) > self._max_archive_bytes:
            raise BodyTooLargeError(
                f"the archive is larger than the whole KV pool, {self._max_archive_bytes} bytes"
            )
        return chunk

    @property
    def _max_archive_bytes(self) -> int:
        """Of any archive that fits into the pool: at worst each block has a salt of its own."""
        blocks = self._store.tables.pool.num_blocks
        return MAX_HEADER_BYTES + blocks * (self._store.shape.record_bytes + MAX_ROOT_BYTES)

    async def _take(self, reader: ArchiveReader, incoming: Incoming, data: bytes) -> None:
        """Verifies the next bytes off the event loop, then has the engine insert them, in batches."""
        records = await asyncio.to_thread(reader.feed, data)
        for start in range(0, len(records), self._store.batch_blocks):
            await self._insert(incoming, records[start : start + self._store.batch_blocks])

    async def _insert(self, incoming: Incoming, records: list[Record]) -> None:
        await self._model.service.call(lambda _: incoming.take(records))

    @contextlib.contextmanager
    def _transfer(self) -> Iterator[None]:
        if self._num_transfers >= MAX_TRANSFERS:
            raise CapacityError(
                f"{MAX_TRANSFERS} exports and imports are running, which is the limit; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_transfers += 1
        try:
            yield
        finally:
            self._num_transfers -= 1


def _records(writer: ArchiveWriter, start: int, pin: Pin, pages: NDArray[np.uint8]) -> bytes:
    """The blocks of a path from `start` on; with the root before them, record i + 1 is block i."""
    parts: list[Page] = []
    for index, page in enumerate(pages, start):
        parts += writer.block(index, pin.path[index].tokens, page.data)[1]
    return b"".join(parts)
