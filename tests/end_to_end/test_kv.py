"""KV that outlives its process, and KV that goes to another one: real processes, as a user would run them."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from raw_client import raw_client
from running_service import RunningService, listening_port

LIMIT_S = 120
TEXT = "".join(chr(ord("a") + index * 7 % 26) for index in range(2000))  # a token per letter
REUSED = (len(TEXT) - 1) // 16 * 16


def up(folder: Path, checkpoint: Path, **engine: Any) -> RunningService:
    """`penstock up` with one engine."""
    folder.mkdir(exist_ok=True)
    path = folder / "penstock.yaml"
    replica = {"engine": {"model": str(checkpoint), "kernels": "torch", "max_batch_tokens": 256, **engine}}
    path.write_text(json.dumps({"server": {"port": 0}, "models": {"little": {"replicas": [replica]}}}))
    return RunningService("up", "--config", str(path))


def gateway_port(service: RunningService) -> int:
    """Where clients ask."""
    port = urlsplit(service.wait_announced()).port
    assert port is not None
    return port


async def ask(port: int, **fields: Any) -> tuple[str, int]:
    """Eight greedy tokens after TEXT, and how many of TEXT's were found."""
    body = {"model": "little", "prompt": TEXT, "max_tokens": 8, "temperature": 0, **fields}
    async with raw_client(port) as client:
        answer = await client.ask("/v1/completions", json.dumps(body).encode())
    assert answer.status == 200, answer.body
    whole = json.loads(answer.body)
    return whole["choices"][0]["text"], whole["usage"]["prompt_tokens_details"]["cached_tokens"]


async def test_a_snapshot_outlives_its_process(checkpoint: Path, tmp_path: Path) -> None:
    """Saved on SIGTERM, back at the next start: the first request hits and says the same. Then the file is
    damaged in the middle, and the start after that has what is right of it; then it is junk, and is a miss.
    """
    snapshot = tmp_path / "kv"
    found, said, restored = [], [], []
    for turn in range(4):
        with up(tmp_path / "config", checkpoint, kv_snapshot=str(snapshot)) as service:
            async with asyncio.timeout(LIMIT_S):
                text, cached = await ask(gateway_port(service))
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.wait) == 0
            found.append(cached)
            said.append(text)
            restored += [event["tokens"] for event in service.events("KV snapshot restored")]
            assert len(service.events("KV snapshot not used")) == (turn == 3)
            (saved,) = service.events("KV snapshot saved")
            assert saved["tokens"] == (len(TEXT) + 7) // 16 * 16
        assert snapshot.stat().st_mode & 0o777 == 0o600
        if turn == 1:
            data = bytearray(snapshot.read_bytes())
            data[len(data) // 2] ^= 1
            snapshot.write_bytes(data)
        elif turn == 2:
            snapshot.write_bytes(b"\0" * 5000)
    assert (found[0], found[1], found[3]) == (0, REUSED, 0)
    assert REUSED // 3 < found[2] < REUSED * 2 // 3
    assert restored == [(len(TEXT) + 7) // 16 * 16, found[2]]
    assert len(set(said)) == 1


async def test_one_process_s_session_goes_on_in_another(checkpoint: Path, tmp_path: Path) -> None:
    """By HTTP, in real time, beside a request that streams. A client that begins an export and does not read
    it, and one that sends half an archive, leave nothing behind.
    """
    with (
        up(tmp_path / "here", checkpoint, kv_transfer=True) as here,
        up(tmp_path / "there", checkpoint, kv_transfer=True) as there,
    ):
        ports = [gateway_port(service) for service in (here, there)]
        engines = [listening_port(service.child("engine")) for service in (here, there)]
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            said, _ = await ask(ports[0])
            busy = tasks.create_task(ask(ports[1], prompt="busy", max_tokens=200))
            body = json.dumps({"model": "little", "prompt": TEXT}).encode()
            async with raw_client(engines[0]) as deaf, raw_client(engines[1]) as short:
                await deaf.request("/v1/kv/export", body)
                assert (await deaf.head()).status == 200
                async with raw_client(engines[0]) as client:
                    exported = await client.ask("/v1/kv/export", body)
                assert exported.values(b"x-penstock-kv-tokens") == [str(REUSED).encode()]
                head = (
                    f"POST /v1/kv/import HTTP/1.1\r\nhost: x\r\ncontent-length: {len(exported.body)}\r\n\r\n"
                )
                short.writer.write(head.encode() + exported.body[: len(exported.body) // 2])
                await short.writer.drain()
            async with raw_client(engines[1]) as client:
                answer = await client.ask("/v1/kv/import", exported.body)
            reply = json.loads(answer.body)
            assert (answer.status, reply["tokens"], reply["reusable_tokens"]) == (200, REUSED, REUSED)
            assert (reply["dropped_blocks"], reply["reason"]) == (0, None)
            assert await ask(ports[1]) == (said, REUSED)
            await busy
            async with raw_client(engines[1]) as client:
                stats = json.loads((await client.ask("/v1/kv/stats", method="GET")).body)
            assert stats["blocks"]["held"] == 0
            for port in ports:  # not through the gateway
                async with raw_client(port) as client:
                    assert (await client.ask("/v1/kv/export", body)).status == 404
        for service in (here, there):
            assert not service.events("KV blocks lost; every block was taken back")
            assert not service.events("request failed")


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"kv_snapshot": "/"}, "kv_snapshot"), ({"kv_transfer": True, "prefix_cache": False}, "kv_transfer")],
)
async def test_a_setting_that_cannot_work_is_refused(
    checkpoint: Path, tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    """At the start, by name, with exit code 2."""
    with up(tmp_path, checkpoint, **settings) as service:
        assert await asyncio.to_thread(service.wait) == 2
        assert key in service.stderr
