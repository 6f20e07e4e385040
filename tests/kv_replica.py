"""Replicas of a tiny model with real weights that export and import KV, and a client of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from asgi_call import Answer, Call
from byte_tokenizer import CHATML, IM_END, byte_level, write_tokenizer
from penstock.asgi.drain import Drain
from penstock.asgi.settings import HttpLimits
from penstock.engine.kv_archive import ArchiveReader, Block
from penstock.engine.settings import EngineSettings
from penstock.replica.app import Replica
from penstock.replica.loading import load_model
from tiny_checkpoints import Case, write_checkpoint

BLOCK = 16
TEXT = "".join(chr(ord("a") + index * 7 % 26) for index in range(200))  # a token per byte
MESSAGES = [{"role": "user", "content": TEXT}]


class Desk:
    """A replica with real weights, and a client of it."""

    def __init__(self, directory: Path, limits: HttpLimits, **changes: Any) -> None:
        settings = EngineSettings(
            model=str(directory),
            **{"device": "cpu", "dtype": "float32", "threads": 1, "max_sequences": 4, "kv_transfer": True}
            | changes,
        )
        self.model = load_model(settings, "m")
        self.core = self.model.service.core
        self.application = Replica(self.model, limits, Drain()).application()

    def post(self, path: str, body: object) -> Call:
        """Begins a request; bytes are sent in pieces, else JSON."""
        if isinstance(body, bytes):
            pieces = [body[start : start + 5000] for start in range(0, len(body), 5000)]
        else:
            pieces = [json.dumps(body).encode()]
        return Call(self.application, "POST", f"/v1/kv/{path}", pieces, ())

    async def ask(self, text: str = TEXT, **fields: Any) -> tuple[str, int]:
        """Twelve greedy tokens after a prompt, and how many of the prompt's were found."""
        body = {"model": "m", "prompt": text, "max_tokens": 12, "temperature": 0, **fields}
        call = Call(self.application, "POST", "/v1/completions", [json.dumps(body).encode()], ())
        answer = await call.answer()
        assert answer.status == 200, answer.body
        usage = answer.json["usage"]
        return answer.json["choices"][0]["text"], usage["prompt_tokens_details"]["cached_tokens"]

    async def export(self, **fields: Any) -> bytes:
        """What /v1/kv/export answers; its head must be right."""
        answer = await self.post("export", {"model": "m", **fields}).answer()
        assert (answer.status, answer.is_complete) == (200, True), answer.body
        assert int(answer.headers[b"content-length"]) == len(answer.body)
        assert int(answer.headers[b"x-penstock-kv-tokens"]) == BLOCK * blocks_in(answer.body, self)
        return answer.body

    async def bring(self, archive: bytes) -> dict[str, Any]:
        """What /v1/kv/import says."""
        answer = await self.post("import", archive).answer()
        assert answer.status == 200, answer.body
        reply: dict[str, Any] = answer.json
        return reply

    async def stats(self) -> dict[str, Any]:
        """What /v1/kv/stats says."""
        answer = await Call(self.application, "GET", "/v1/kv/stats", (), ()).answer()
        stats: dict[str, Any] = answer.json
        return stats

    def check(self) -> None:
        """Asserts that nothing is locked and no block is lost; the engine is idle."""
        self.core.scheduler.check()
        assert self.core.scheduler.tables.is_idle
        assert self.core.scheduler.tables.cache.num_evictable == self.core.stats().num_cached_blocks


def blocks_in(archive: bytes, desk: Desk) -> int:
    """How many blocks an archive of that replica holds; it must be right to its end."""
    assert desk.model.kv is not None
    reader = ArchiveReader(desk.model.kv.shape)
    records = reader.feed(archive)
    reader.close()
    assert reader.problem is None
    return sum(isinstance(record, Block) for record in records)


@contextlib.asynccontextmanager
async def replica(directory: Path, limits: HttpLimits | None = None, **changes: Any) -> AsyncIterator[Desk]:
    """Serves; in the end nothing may be locked."""
    desk = Desk(directory, limits or HttpLimits(), **changes)
    desk.model.service.start()
    try:
        yield desk
        await desk.model.service.call(lambda _: desk.check())
    finally:
        await desk.model.service.stop()


def error_of(answer: Answer) -> tuple[int, str, str | None]:
    """Status, code and param."""
    return answer.status, answer.error["code"], answer.error["param"]


def write_model(directory: Path) -> Path:
    """A tiny checkpoint with a tokenizer that fits."""
    write_checkpoint(Case("qwen3", "qwen3", {"vocab_size": 300, "max_position_embeddings": 512}), directory)
    return write_tokenizer(byte_level(), directory, eos_token=IM_END, chat_template=CHATML)
