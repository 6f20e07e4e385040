"""A real replica whose step hangs: it is noticed, told to clients, and the process is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import h11

from penstock.app.child import EXIT_STUCK
from raw_client import RawClient, raw_client
from running_service import RunningService
from stopped_thread import busy_thread, stopped

CHAT = "/v1/chat/completions"
ASK = {"model": "little", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}
LIMIT_S = 60


async def rest_of(client: RawClient) -> bytes:
    """The rest of an answer, which may be cut off."""
    received = b""
    with contextlib.suppress(h11.RemoteProtocolError):
        async for piece in client.pieces():
            received += piece
    return received


async def test_a_replica_whose_step_hangs_is_started_anew(checkpoint: Path, tmp_path: Path) -> None:
    """Its thread is stopped in the middle of an answer. That answer ends, visibly unfinished; the supervisor
    starts another process, which answers as the first one did.

    If the thread happens to hold the interpreter's lock, the watchdog hangs with it and the interpreter's own
    timer ends the process; both ends are right ones.
    """
    engine = {"model": str(checkpoint), "step_timeout_s": 2}
    path = tmp_path / "penstock.yaml"
    path.write_text(
        json.dumps({"server": {"port": 0}, "models": {"little": {"replicas": [{"engine": engine}]}}})
    )
    with RunningService("up", "--config", str(path)) as service:
        port = urlsplit(service.wait_announced()).port
        assert port is not None
        body = json.dumps(ASK).encode()
        async with asyncio.timeout(LIMIT_S), raw_client(port) as client, raw_client(port) as other:
            before = json.loads((await client.ask(CHAT, body)).body)["choices"]
            hung = service.child("engine")
            await client.request(CHAT, json.dumps(ASK | {"stream": True, "max_tokens": 8000}).encode())
            await client.head()
            with stopped(await asyncio.to_thread(busy_thread, hung)):
                received = await rest_of(client)
                assert b"[DONE]" not in received
            while (answer := await other.ask(CHAT, body)).status != 200:
                assert answer.status in (500, 502, 503)
                await asyncio.sleep(0)
            assert json.loads(answer.body)["choices"] == before
            assert service.child("engine") != hung
        (ended,) = service.events("child ended, restarting")
        assert ended["status"] in (EXIT_STUCK, 1)
        assert ended["was_stuck"] is (ended["status"] == EXIT_STUCK)
        if ended["was_stuck"]:
            (stuck,) = service.events("engine stuck")
            assert (stuck["num_sequences"], stuck["num_requests"]) == (1, 1)
            assert b'"engine_error"' in received
        else:
            assert "Timeout (" in service.stderr
