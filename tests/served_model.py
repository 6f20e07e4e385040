"""A replica of a checkpoint, loaded and served as `penstock engine` does, called without a socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from asgi_call import Answer, Call
from penstock.asgi.drain import Drain
from penstock.asgi.settings import HttpLimits
from penstock.engine.settings import EngineSettings
from penstock.replica.application import build_application
from penstock.replica.encoder_model import ServedEncoder
from penstock.replica.loading import load_served
from penstock.replica.model import ServedModel

MODEL = "served"


class Desk:
    """A client of it."""

    def __init__(self, model: ServedModel | ServedEncoder, limits: HttpLimits) -> None:
        self.model = model
        self.drain = Drain()
        self.application = build_application(model, limits, self.drain)

    def call(self, path: str, headers: Sequence[tuple[bytes, bytes]] = (), **fields: Any) -> Call:
        """Begins a POST; `fields` are laid over the model's name."""
        body = json.dumps({"model": MODEL, **fields}).encode()
        return Call(self.application, "POST", path, [body], headers)

    async def post(self, path: str, **fields: Any) -> Answer:
        """A whole POST."""
        return await self.call(path, **fields).answer()

    async def get(self, path: str) -> Answer:
        """A whole GET."""
        return await Call(self.application, "GET", path, (), ()).answer()

    async def vectors(self, given: Any, **fields: Any) -> list[list[float]]:
        """The embeddings of an input, which must succeed."""
        answer = await self.post("/v1/embeddings", input=given, **fields)
        assert answer.status == 200, answer.body
        assert [one["index"] for one in answer.json["data"]] == list(range(len(answer.json["data"])))
        return [one["embedding"] for one in answer.json["data"]]

    async def refused(self, path: str, **fields: Any) -> tuple[str, str]:
        """Param and message of a POST that must be a 400."""
        answer = await self.post(path, **fields)
        assert answer.status == 400, answer.body
        return answer.error["param"], answer.error["message"]


@contextlib.asynccontextmanager
async def served(directory: Path, limits: HttpLimits | None = None, **settings: Any) -> AsyncIterator[Desk]:
    """Serves a checkpoint in float32 on PyTorch's operations; stopped in the end, with nothing left over."""
    chosen = {"device": "cpu", "dtype": "float32", "kernels": "torch", "threads": 1, **settings}
    model = load_served(EngineSettings(model=str(directory), **chosen), MODEL)
    model.service.start()
    desk = Desk(model, limits or HttpLimits())
    try:
        yield desk
    finally:
        await model.service.stop()
    assert model.service.num_requests == 0
    assert desk.drain.num_running == 0
