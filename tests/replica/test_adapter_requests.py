"""Requests that name an adapter, while adapters come and go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asgi_call import GUARD_S
from penstock.engine.adapter_store import AdapterStore
from scripted_replica import END, MODEL, Desk, replica

HELLO = [*b"Hello", END]
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@contextlib.asynccontextmanager
async def desk_for(checkpoint: Path) -> AsyncIterator[Desk]:
    """A replica with the adapter `sql`; any folder is an adapter, since the answers are scripted."""
    store = AdapterStore(MODEL, lambda folder: folder, 2, is_open=True)
    store.preload({"sql": str(checkpoint)})
    async with replica(checkpoint, HELLO, adapters=store) as desk:
        yield desk


async def load(desk: Desk, folder: Path) -> None:
    """Loads `sql` in place of what has that name."""
    body = {"lora_name": "sql", "lora_path": str(folder), "load_inplace": True}
    assert (await desk.call("POST", LOAD, body).answer()).status == 200


async def unload(desk: Desk) -> None:
    """Unloads `sql`."""
    assert (await desk.call("POST", UNLOAD, {"lora_name": "sql"}).answer()).status == 200


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_a_request_is_computed_with_the_adapter_it_names(kind: str, checkpoint: Path) -> None:
    """And its answer, streamed or whole, has that name."""
    async with desk_for(checkpoint) as desk:
        for name in (MODEL, "sql"):
            answer = await getattr(desk, kind)(model=name).answer()
            assert answer.json["model"] == name
            answer = await getattr(desk, kind)(model=name, stream=True).answer()
            assert {json.loads(event)["model"] for event in answer.events[:-1]} == {name}
        names = [None if one is None else one.name for one in desk.forward.adapters.values()]
        assert names == [None, None, "sql", "sql"]


async def test_an_unloaded_adapter_finishes_its_requests(checkpoint: Path) -> None:
    """New ones are a 404 at once; those of its successor have the new one."""
    async with desk_for(checkpoint) as desk:
        desk.forward.hold()
        running = desk.chat(model="sql")
        await desk.forward.begun()
        await unload(desk)
        answer = await desk.chat(model="sql").answer()
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert desk.model.adapters.num_leaving == 1
        await load(desk, checkpoint)
        after = desk.chat(model="sql")
        desk.forward.let()
        for call in (running, after):
            answer = await call.answer()
            assert answer.json["choices"][0]["message"]["content"] == "Hello"
        numbers = [one.number for one in desk.forward.adapters.values() if one is not None]
        assert numbers == [1, 2]
        desk.forward.adapters.clear()
        gc.collect()
        assert desk.model.adapters.num_leaving == 0


async def test_a_prefix_is_cached_for_its_adapter_alone(checkpoint: Path) -> None:
    """A reloaded one has computed nothing yet."""
    async with desk_for(checkpoint) as desk:

        async def num_cached(name: str) -> int:
            answer = await desk.complete("a long prompt " * 3, model=name).answer()
            cached: int = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
            return cached

        assert [await num_cached(name) for name in (MODEL, "sql")] == [0, 0]
        assert min([await num_cached(name) for name in (MODEL, "sql")]) > 0
        await load(desk, checkpoint)
        assert await num_cached("sql") == 0
        assert await num_cached("sql") > 0


async def test_adapters_come_and_go_under_traffic(checkpoint: Path) -> None:
    """Every request is answered whole or was told that the adapter is not there; each client sees both."""
    async with desk_for(checkpoint) as desk:

        async def ask() -> None:
            statuses: set[int] = set()
            while statuses != {200, 404}:
                answer = await desk.chat(model="sql").answer()
                assert answer.status in (200, 404)
                if answer.status == 200:
                    assert answer.json["choices"][0]["message"]["content"] == "Hello"
                statuses.add(answer.status)

        async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as tasks:
            clients = [tasks.create_task(ask()) for _ in range(8)]
            while not all(client.done() for client in clients):
                await unload(desk)
                await desk.chat(model=MODEL).answer()
                body = {"lora_name": "sql", "lora_path": str(checkpoint)}
                while (await desk.call("POST", LOAD, body).answer()).status != 200:
                    desk.forward.adapters.clear()  # what the test itself holds of those that leave
                    await desk.chat(model=MODEL).answer()
                await desk.chat(model="sql").answer()
