"""`penstock up`, started and stopped as a user would."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from raw_client import raw_client
from running_service import RunningService, wait_ended

CHAT = "/v1/chat/completions"
ASK = {"model": "little", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}
LIMIT_S = 60


def up(checkpoint: Path, *arguments: str) -> RunningService:
    return RunningService("up", "--model", str(checkpoint), "--port", "0", *arguments)


def port_of(service: RunningService) -> int:
    port = urlsplit(service.wait_announced()).port
    assert port is not None
    return port


async def test_ctrl_c_finishes_running_answers_and_refuses_new_ones(checkpoint: Path) -> None:
    """Then everything ends, with exit code 0."""
    with up(checkpoint) as service:
        port = port_of(service)
        children = service.children()
        assert len(children) == 2
        body = json.dumps(ASK | {"stream": True, "max_tokens": 1500}).encode()
        async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
            await client.request(CHAT, body)
            assert (await client.head()).status == 200
            text = await client.piece()
            service.process.send_signal(signal.SIGINT)
            async with raw_client(port) as other:
                while (answer := await other.ask("/readyz", method="GET")).status == 200:
                    pass
                answer = await other.ask(CHAT, json.dumps(ASK).encode())
            assert (answer.status, answer.values(b"retry-after")) == (503, [b"10"])
            text += b"".join([piece async for piece in client.pieces()])
            assert text.endswith(b"data: [DONE]\n\n")
            assert b'"error"' not in text
        assert service.wait() == 0
        wait_ended(children, limit_s=0.001)


async def test_ctrl_c_twice_stops_at_once(checkpoint: Path) -> None:
    """The answer is cut, nothing is left."""
    with up(checkpoint) as service:
        port = port_of(service)
        children = service.children()
        async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
            await client.request(CHAT, json.dumps(ASK | {"stream": True, "max_tokens": 8000}).encode())
            await client.head()
            service.process.send_signal(signal.SIGINT)
            async with raw_client(port) as other:
                while (await other.ask("/readyz", method="GET")).status == 200:
                    pass
            service.process.send_signal(signal.SIGINT)
            received = b""
            while piece := await client.reader.read(65_536):
                received += piece
            assert b"[DONE]" not in received
        assert service.wait() == 0
        wait_ended(children, limit_s=0.001)


async def test_a_killed_engine_comes_back_where_it_was(checkpoint: Path) -> None:
    """And if the supervisor is killed in turn, no child outlives it."""
    with up(checkpoint) as service:
        port = port_of(service)
        body = json.dumps(ASK).encode()
        async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
            before = json.loads((await client.ask(CHAT, body)).body)["choices"]
            killed = service.child("engine")
            os.kill(killed, signal.SIGKILL)
            wait_ended([killed])
            # Meanwhile requests wait in the listener's queue, or get a 502 or 503: never a wrong answer.
            while (answer := await client.ask(CHAT, body)).status != 200:
                assert answer.status in (502, 503)
                await asyncio.to_thread(os.sched_yield)
            assert json.loads(answer.body)["choices"] == before
            assert service.child("engine") != killed
        children = service.children()
        assert len(children) == 2
        service.process.kill()
        wait_ended(children)


def test_a_model_elsewhere_that_is_down_does_not_hide_those_here(checkpoint: Path, tmp_path: Path) -> None:
    """The address is announced as soon as the local models serve, and the other one is named."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        port = unused.getsockname()[1]
        config = {
            "here": {"replicas": [{"engine": {"model": str(checkpoint)}}]},
            "elsewhere": {"replicas": [{"url": f"http://127.0.0.1:{port}/v1"}]},
        }
        path = tmp_path / "penstock.yaml"
        path.write_text(json.dumps({"server": {"port": 0}, "models": config}))
        with RunningService("up", "--config", str(path)) as service:
            service.wait_announced()
            assert "Penstock serves here on " in service.stdout
            assert "no replica answers: elsewhere\n" in service.stdout


def test_a_model_and_a_config_with_models_are_told(checkpoint: Path, tmp_path: Path) -> None:
    """Which of the two was meant cannot be known."""
    path = tmp_path / "penstock.yaml"
    path.write_text("models: {a: {replicas: [{url: 'http://a/v1'}]}}")
    with up(checkpoint, "--config", str(path)) as service:
        assert service.wait() == 2
        assert "--model" in service.stderr
        assert str(path) in service.stderr


async def test_nobody_has_to_read_the_banner(checkpoint: Path) -> None:
    """`penstock up | true` serves all the same, and closing the terminal ends it as Ctrl-C does."""
    with up(checkpoint) as service:
        service.close_stdout()
        while not service.events("serving"):
            assert service.process.poll() is None, service.stderr
        (serving,) = service.events("serving")
        port = urlsplit(serving["address"]).port
        assert port is not None
        async with asyncio.timeout(LIMIT_S), raw_client(port) as client:
            assert (await client.ask(CHAT, json.dumps(ASK).encode())).status == 200
        service.process.send_signal(signal.SIGHUP)
        assert service.wait() == 0, service.stderr
        assert "Traceback" not in service.stderr


def test_a_model_that_the_engine_refuses_stops_everything(checkpoint: Path, tmp_path: Path) -> None:
    """With the engine's reason and exit code 2, not with a loop of restarts."""
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(
        json.dumps(config | {"model_type": "mamba", "architectures": ["Mamba"]})
    )
    with up(broken) as service:
        assert service.wait() == 2
        assert "mamba" in service.stderr.lower()
        assert "Traceback" not in service.stderr


def test_ctrl_c_while_starting_leaves_nothing(checkpoint: Path) -> None:
    """Also before there is anything to drain."""
    with up(checkpoint) as service:
        while not service.events("started"):
            assert service.process.poll() is None, service.stderr
            if len(service.children()) == 2:
                break
        children = service.children()
        service.process.send_signal(signal.SIGINT)
        assert service.wait() == 0, service.stderr
        wait_ended(children, limit_s=0.001)
        assert "Traceback" not in service.stderr


def test_a_port_in_use_is_told(checkpoint: Path) -> None:
    """Exit code 2, one line, before any process is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with RunningService("up", "--model", str(checkpoint), "--port", port) as service:
            assert service.wait() == 2
            assert f"127.0.0.1:{port}" in service.stderr
            assert "--port" in service.stderr
            assert len(service.stderr.splitlines()) == 1


@pytest.mark.parametrize("model", ["/no/such/folder", "builtin:none", "no such model", "./none", ""])
def test_a_model_that_is_not_there_is_told(model: str) -> None:
    """Exit code 2, one line."""
    with RunningService("up", "--model", model, "--port", "0") as service:
        assert service.wait() == 2
        assert service.stderr.startswith("penstock: ")
        assert len(service.stderr.splitlines()) == 1


def test_a_bad_config_is_told(tmp_path: Path) -> None:
    """Exit code 2, and the nearest right key."""
    path = tmp_path / "penstock.yaml"
    path.write_text("server: {prot: 1}")
    with RunningService("up", "--config", str(path)) as service:
        assert service.wait() == 2
        assert "did you mean server.port?" in service.stderr


def test_the_gateway_alone_starts_no_engine(tmp_path: Path) -> None:
    """It says what would."""
    with RunningService("gateway", "--port", "0") as service:
        assert service.wait() == 2
        assert "penstock up" in service.stderr
