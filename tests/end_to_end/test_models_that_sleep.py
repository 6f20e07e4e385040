"""Several models under one `penstock up`, loaded when they are asked for."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from raw_client import Answer, raw_client
from running_service import RunningService, wait_ended

CHAT = "/v1/chat/completions"
LIMIT_S = 120
# Room for one engine, and for a second one only when the first has gone.
ONE_ENGINE_MB = 700
LAZY = {"load": "first_use"}


def engine(checkpoint: Path | str, **fields: Any) -> dict[str, Any]:
    return {"replicas": [{"engine": {"model": str(checkpoint), "kv_cache_mb": 16}}], **fields}


def up(tmp_path: Path, models: Mapping[str, Any], **engines: float) -> RunningService:
    path = tmp_path / "penstock.yaml"
    path.write_text(json.dumps({"server": {"port": 0}, "engines": engines, "models": models}))
    return RunningService("up", "--config", str(path))


def port_of(service: RunningService) -> int:
    port = urlsplit(service.wait_announced()).port
    assert port is not None
    return port


async def ask(port: int, model: str, timeout_s: float | None = None, **fields: Any) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **fields}
    headers = [] if timeout_s is None else [(b"x-request-timeout", str(timeout_s).encode())]
    async with raw_client(port) as client:
        return await client.ask(CHAT, json.dumps(body).encode(), headers=headers)


async def get(port: int, path: str, method: str = "GET") -> Any:
    async with raw_client(port) as client:
        return json.loads((await client.ask(path, method=method)).body)


async def states(port: int) -> dict[str, str]:
    listed = await get(port, "/v1/models")
    return {model["id"]: model["penstock"]["state"] for model in listed["data"]}


async def metric(port: int, line: str) -> float:
    async with raw_client(port) as client:
        text = (await client.ask("/metrics", method="GET")).body.decode()
    return float(next((found.split()[-1] for found in text.splitlines() if found.startswith(line)), 0.0))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.to_thread(os.sched_yield)


def error_of(answer: Answer) -> tuple[int, str, str]:
    error = json.loads(answer.body)["error"]
    return answer.status, error["code"], error["message"]


async def test_a_model_is_loaded_once_by_its_first_requests(checkpoint: Path, tmp_path: Path) -> None:
    """Twenty come at once; before them there is no process, and after /sleep there is none again."""
    with up(tmp_path, {"little": engine(checkpoint, **LAZY)}) as service:
        port = port_of(service)
        assert "Asleep, loaded at first use: little\n" in service.stdout
        assert len(service.children()) == 1
        assert await states(port) == {"little": "asleep"}
        assert (await get(port, "/readyz"))["status"] == "ready"
        async with asyncio.timeout(LIMIT_S):
            in_time = [ask(port, "little", temperature=0) for _ in range(20)]
            late, *answers = await asyncio.gather(ask(port, "little", timeout_s=0.05), *in_time)
            assert error_of(late)[:2] == (504, "deadline_exceeded")
            assert {answer.status for answer in answers} == {200}
            assert len({json.dumps(json.loads(answer.body)["choices"]) for answer in answers}) == 1
            assert await metric(port, 'penstock_model_loads_total{model="little",outcome="ready"}') == 1
            assert len(service.events("model loaded")) == 1
            assert await states(port) == {"little": "ready"}

            first = service.child("engine")
            assert (await get(port, "/sleep?level=1", "POST"))["state"] == "asleep"
            wait_ended([first], limit_s=0.001)
            assert (await get(port, "/is_sleeping?model=little"))["is_sleeping"] is True
            assert (await ask(port, "little")).status == 200
            assert service.child("engine") != first
            assert (await get(port, "/is_sleeping"))["is_sleeping"] is False


async def test_streams_in_flight_are_never_cut_for_room(checkpoint: Path, tmp_path: Path) -> None:
    """With room for one model, the other one waits for the stream's end; then they take turns."""
    models = {"little": engine(checkpoint, **LAZY), "tiny": engine("builtin:tiny", **LAZY)}
    with up(tmp_path, models, memory_mb=ONE_ENGINE_MB) as service:
        port = port_of(service)
        body = {"model": "little", "messages": [{"role": "user", "content": "x"}], "stream": True}
        body |= {"max_tokens": 4000, "temperature": 0}
        async with asyncio.timeout(LIMIT_S), raw_client(port) as client, asyncio.TaskGroup() as tasks:
            await client.request(CHAT, json.dumps(body).encode())
            assert (await client.head()).status == 200
            text = await client.piece()
            other = tasks.create_task(ask(port, "tiny"))
            await until(lambda: len(service.events("requests wait for a model")) == 2)
            assert await states(port) == {"little": "ready", "tiny": "loading"}
            text += b"".join([piece async for piece in client.pieces()])
            assert text.endswith(b"data: [DONE]\n\n")
            assert b'"error"' not in text
            assert (await other).status == 200
            assert await states(port) == {"little": "asleep", "tiny": "ready"}
            for model in ("little", "tiny"):
                assert (await ask(port, model)).status == 200
                assert len(service.children()) == 2
            assert await metric(port, 'penstock_model_unloads_total{model="little",reason="room"}') == 2


async def test_no_room_in_time_is_told(checkpoint: Path, tmp_path: Path) -> None:
    """The load gives up beside a model that is kept busy, and is not held against the other model."""
    models = {"little": engine(checkpoint, **LAZY), "tiny": engine("builtin:tiny", **LAZY)}
    with up(tmp_path, models, memory_mb=ONE_ENGINE_MB, load_timeout_s=20) as service:
        port = port_of(service)
        async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
            assert (await ask(port, "little")).status == 200
            body = {"model": "little", "messages": [{"role": "user", "content": "x"}], "stream": True}
            await client.request(CHAT, json.dumps(body | {"max_tokens": 8000}).encode())
            assert (await client.head()).status == 200
            stopped = service.child("engine")
            os.kill(stopped, signal.SIGSTOP)  # so that the stream lasts
            answer = await ask(port, "tiny")
            assert error_of(answer)[:2] == (503, "not_ready")
            assert int(answer.values(b"retry-after")[0]) >= 1
            os.kill(stopped, signal.SIGCONT)
            text = b"".join([piece async for piece in client.pieces()])
            assert text.endswith(b"data: [DONE]\n\n")
            assert (await ask(port, "tiny")).status == 200


async def test_a_bad_checkpoint_is_told_to_all_and_works_once_mended(
    checkpoint: Path, tmp_path: Path
) -> None:
    """With the engine's own reason; the other model is not concerned."""
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "mamba", "architectures": ["Mamba"]})
    )
    models = {"broken": engine(folder, **LAZY), "little": engine(checkpoint)}
    with up(tmp_path, models) as service:
        port = port_of(service)
        async with asyncio.timeout(LIMIT_S):
            answers = await asyncio.gather(*(ask(port, "broken") for _ in range(5)))
            for answer in answers:
                status, code, message = error_of(answer)
                assert (status, code) == (503, "model_load_failed")
                assert "'broken'" in message
                assert "Mamba" in message
                assert int(answer.values(b"retry-after")[0]) >= 1
            assert await states(port) == {"broken": "failed", "little": "ready"}
            assert (await get(port, "/readyz"))["status"] == "partly ready"
            assert (await ask(port, "little")).status == 200
            (folder / "config.json").write_text(json.dumps(config))
            while (answer := await ask(port, "broken")).status != 200:
                assert error_of(answer)[:2] == (503, "model_load_failed")
            assert await states(port) == {"broken": "ready", "little": "ready"}


async def test_an_engine_killed_while_it_loads_or_serves(checkpoint: Path, tmp_path: Path) -> None:
    """The first is told to who waits, the second is mended; both leave the rest alone."""
    with up(tmp_path, {"little": engine(checkpoint, **LAZY)}) as service:
        port = port_of(service)
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(ask(port, "little"))
            await until(lambda: is_starting(service))
            os.kill(service.child("engine"), signal.SIGKILL)
            status, code, message = error_of(await waiting)
            assert (status, code) == (503, "model_load_failed")
            assert "status -9 while it loaded" in message
            while (answer := await ask(port, "little")).status != 200:
                assert error_of(answer)[:2] == (503, "model_load_failed")
            killed = service.child("engine")
            os.kill(killed, signal.SIGKILL)
            wait_ended([killed])
            while (answer := await ask(port, "little")).status != 200:
                assert answer.status in (502, 503)
            assert service.child("engine") != killed


def is_starting(service: RunningService) -> bool:
    try:
        return bool(service.child("engine"))
    except (ValueError, OSError):
        return False


async def test_a_new_gateway_knows_who_is_awake(checkpoint: Path, tmp_path: Path) -> None:
    """Those asleep stay so until they are asked for, those awake answer at once."""
    models = {"little": engine(checkpoint, **LAZY), "tiny": engine("builtin:tiny", **LAZY)}
    with up(tmp_path, models) as service:
        port = port_of(service)
        async with asyncio.timeout(LIMIT_S):
            assert (await ask(port, "little")).status == 200
            awake = service.child("engine")
            killed = service.child("gateway")
            os.kill(killed, signal.SIGKILL)
            wait_ended([killed])
            assert await states(port) == {"little": "ready", "tiny": "asleep"}
            assert (await ask(port, "little")).status == 200
            assert service.child("engine") == awake
            assert (await ask(port, "tiny")).status == 200
            assert len(service.children()) == 3


async def test_ctrl_c_while_a_model_loads(checkpoint: Path, tmp_path: Path) -> None:
    """Who waits is told, and nothing is waited for."""
    with up(tmp_path, {"little": engine(checkpoint, **LAZY)}) as service:
        port = port_of(service)
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(ask(port, "little"))
            await until(lambda: is_starting(service))
            children = service.children()
            service.process.send_signal(signal.SIGINT)
            assert error_of(await waiting)[:2] == (503, "draining")
        assert service.wait() == 0, service.stderr
        wait_ended(children, limit_s=0.001)
        assert "Traceback" not in service.stderr


async def test_an_idle_model_is_unloaded(checkpoint: Path, tmp_path: Path) -> None:
    """Only if it may be: one that is loaded at start stays, unless it is told to sleep."""
    models = {"little": engine(checkpoint, **LAZY), "kept": engine(checkpoint)}
    with up(tmp_path, models, idle_s=0.1) as service:
        port = port_of(service)
        assert "Penstock serves little, kept on " in service.stdout
        async with asyncio.timeout(LIMIT_S):
            assert (await get(port, "/wake_up?model=little", "POST"))["state"] in ("ready", "unloading")
            await until(lambda: service.events("unloaded"))
            assert await metric(port, 'penstock_model_unloads_total{model="little",reason="idle"}') == 1
            assert (await ask(port, "little")).status == 200
            assert (await get(port, "/sleep?model=kept", "POST"))["state"] == "asleep"
            assert (await ask(port, "kept")).status == 200
            assert await metric(port, 'penstock_model_unloads_total{model="kept",reason="asked"}') == 1
            assert await metric(port, 'penstock_model_unloads_total{model="kept",reason="idle"}') == 0


@pytest.mark.parametrize("memory_mb", [512, ONE_ENGINE_MB])
def test_models_kept_from_the_start_must_fit(checkpoint: Path, tmp_path: Path, memory_mb: int) -> None:
    """Exit code 2 and the arithmetic."""
    big = {"replicas": [{"engine": {"model": str(checkpoint), "kv_cache_mb": 400}}]}
    with up(tmp_path, {"one": big, "two": big}, memory_mb=memory_mb) as service:
        assert service.wait() == 2
        last = service.stderr.splitlines()[-1]
        assert last.startswith("penstock: models.")
        assert "engines.memory_mb" in last
        assert "Traceback" not in service.stderr
