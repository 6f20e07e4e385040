"""Loading and unloading adapters over HTTP, as vLLM's clients do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lora_adapters import WEIGHTS, edit_config, write_adapter
from penstock.engine.adapter_store import AdapterStore
from penstock.engine.lora import read_lora
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config
from scripted_replica import END, MODEL, Desk, replica
from tiny_checkpoints import CASES, write_checkpoint

HELLO = [*b"Hello", END]
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny model's folder, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("base")
    return folder, write_checkpoint(next(case for case in CASES if case.name == "llama"), folder)


@pytest.fixture
def adapter(base: tuple[Path, Any], tmp_path: Path) -> Path:
    """A good adapter's folder."""
    return write_adapter(base[1], tmp_path / "adapter")


@contextlib.asynccontextmanager
async def desk_for(
    checkpoint: Path, base: tuple[Path, Any], *, max_loras: int = 2, is_open: bool = True
) -> AsyncIterator[Desk]:
    """A replica that reads adapters of the tiny model, though its answers are scripted."""
    spec = DecoderSpec.from_config(read_config(base[0]))
    store = AdapterStore(MODEL, lambda folder: read_lora(folder, spec, 16), max_loras, is_open=is_open)
    async with replica(checkpoint, HELLO, adapters=store) as desk:
        yield desk


async def test_an_adapter_comes_and_goes(checkpoint: Path, base: tuple[Path, Any], adapter: Path) -> None:
    """With vLLM's words; while it is there it is listed with its parent."""
    async with desk_for(checkpoint, base) as desk:
        answer = await desk.call("POST", LOAD, {"lora_name": "sql", "lora_path": str(adapter)}).answer()
        assert (answer.status, answer.body) == (200, b"Success: LoRA adapter 'sql' added successfully.")
        assert answer.headers[b"content-type"].startswith(b"text/plain")
        listed = {one["id"]: one.get("parent") for one in (await desk.get("/v1/models")).json["data"]}
        assert listed == {MODEL: None, "sql": MODEL}
        assert b'penstock_engine_loras{state="loaded"} 1.0' in (await desk.get("/metrics")).body
        answer = await desk.call("POST", UNLOAD, {"lora_name": "sql"}).answer()
        assert (answer.status, answer.body) == (200, b"Success: LoRA adapter 'sql' removed successfully.")
        assert [one["id"] for one in (await desk.get("/v1/models")).json["data"]] == [MODEL]
        answer = await desk.call("POST", UNLOAD, {"lora_name": "sql"}).answer()
        assert (answer.status, answer.error["param"]) == (404, "lora_name")


async def test_a_name_is_loaded_once_unless_in_place(
    checkpoint: Path, base: tuple[Path, Any], adapter: Path
) -> None:
    """And no more than `max_loras`."""
    async with desk_for(checkpoint, base) as desk:
        body = {"lora_name": "sql", "lora_path": str(adapter)}
        assert (await desk.call("POST", LOAD, body).answer()).status == 200
        answer = await desk.call("POST", LOAD, body).answer()
        assert (answer.status, answer.error["param"]) == (400, "lora_name")
        assert "loaded already" in answer.error["message"]
        assert (await desk.call("POST", LOAD, body | {"load_inplace": True}).answer()).status == 200
        assert (await desk.call("POST", LOAD, body | {"lora_name": "b"}).answer()).status == 200
        answer = await desk.call("POST", LOAD, body | {"lora_name": "c"}).answer()
        assert (answer.status, answer.error["param"]) == (400, "lora_name")
        assert "max_loras is 2" in answer.error["message"]
        answer = await desk.call("POST", LOAD, body | {"lora_name": MODEL}).answer()
        assert (answer.status, answer.error["param"]) == (400, "lora_name")


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_switched_off_it_says_how_to_switch_it_on(
    path: str, checkpoint: Path, base: tuple[Path, Any], adapter: Path
) -> None:
    """The default: clients have no business with this machine's folders."""
    async with desk_for(checkpoint, base, is_open=False) as desk:
        answer = await desk.call("POST", path, {"lora_name": "x", "lora_path": str(adapter)}).answer()
        assert answer.status == 400
        assert "runtime_lora" in answer.error["message"]
        assert desk.model.adapters.loaded == ()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"lora_name": 5}, "lora_name"),
    ({"lora_name": ""}, "lora_name"),
    ({"lora_name": "x" * 257}, "lora_name"),
    ({"lora_name": "a\nb"}, "lora_name"),
    ({"lora_name": None}, "lora_name"),
    ({"lora_path": None}, "lora_path"),
    ({"lora_path": 5}, "lora_path"),
    ({"lora_path": ""}, "lora_path"),
    ({"lora_path": "/nonesuch"}, "lora_path"),
    ({"lora_path": "../../../etc/passwd"}, "lora_path"),
    ({"lora_path": "/"}, "lora_path"),
    ({"lora_path": "a\0b"}, "lora_path"),
    ({"lora_path": "x" * 5000}, "lora_path"),
    ({"load_inplace": "yes"}, "load_inplace"),
    ({"base_model_name": "other"}, "base_model_name"),
    ({"is_3d_lora_weight": True}, "is_3d_lora_weight"),
    ({"lora_size": 1}, "lora_size"),
]


@pytest.mark.parametrize(("changes", "param"), BAD, ids=lambda value: str(value)[:40])
async def test_a_bad_request_names_its_field(
    changes: dict[str, Any], param: str, checkpoint: Path, base: tuple[Path, Any], adapter: Path
) -> None:
    """A 400, and nothing is loaded."""
    async with desk_for(checkpoint, base) as desk:
        body = {"lora_name": "x", "lora_path": str(adapter)} | changes
        answer = await desk.call("POST", LOAD, body).answer()
        assert (answer.status, answer.error["param"]) == (400, param)
        assert desk.model.adapters.loaded == ()


async def test_bad_files_are_the_clients_fault(
    checkpoint: Path, base: tuple[Path, Any], adapter: Path
) -> None:
    """With what is wrong about them; the name stays free."""
    async with desk_for(checkpoint, base) as desk:
        body = {"lora_name": "x", "lora_path": str(adapter)}

        async def refused() -> str:
            answer = await desk.call("POST", LOAD, body).answer()
            assert (answer.status, answer.error["param"]) == (400, "lora_path")
            message: str = answer.error["message"]
            return message

        whole = (adapter / WEIGHTS).read_bytes()
        (adapter / WEIGHTS).write_bytes(whole[:-100])
        assert "cannot be read" in await refused()
        (adapter / WEIGHTS).write_bytes(whole)
        edit_config(adapter, r=17)
        assert "max_lora_rank is 16" in await refused()
        edit_config(adapter, r=8, use_dora=True)
        assert "use_dora" in await refused()
        edit_config(adapter, use_dora=False)
        assert (await desk.call("POST", LOAD, body).answer()).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000])
@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_malformed_bodies_are_a_400(
    path: str, body: bytes, checkpoint: Path, base: tuple[Path, Any]
) -> None:
    """Never a 500."""
    async with desk_for(checkpoint, base) as desk:
        assert (await desk.call("POST", path, pieces=[body]).answer()).status == 400
