"""What `penstock up` prints."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.app.banner import banner, curl_command
from penstock.app.readiness import Served
from penstock.engine.checkpoint import Task

README = Path(__file__).parent.parent.parent / "README.md"


def test_the_command_is_the_readmes() -> None:
    """One line, so that it survives being copied."""
    command = curl_command("http://127.0.0.1:8080", "tiny")
    assert f"\n{command}\n" in README.read_text(encoding="utf-8")
    assert f"\n  {command}\n" in banner("http://127.0.0.1:8080", ["tiny"], Served([], []))


@pytest.mark.parametrize("model", ["tiny", "it's", '"', "$(x) `x` \\", "Ü 水"])
def test_any_name_survives_the_shell(model: str) -> None:
    """As it is, not escaped where it need not be."""
    line = curl_command("http://[::1]:8080", model)
    words = shlex.split(line)
    assert words[:2] == ["curl", "http://[::1]:8080/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == model
    assert "\\u" not in line


def test_models_that_are_not_ready_are_told() -> None:
    """And not asked in the example."""
    text = banner("http://a:1", ["b", "c", "d"], Served(["b", "d"], []))
    assert "Penstock serves c on http://a:1\n" in text
    assert "Not ready, no replica answers: b, d\n" in text
    assert '"model":"c"' in text
    assert "Penstock listens on http://a:1\n" in banner("http://a:1", ["b"], Served(["b"], []))


def test_models_that_are_asleep_are_told() -> None:
    """They are served; the example asks one that answers at once, if there is any."""
    text = banner("http://a:1", ["b", "c", "d"], Served(["d"], ["b"]))
    assert "Penstock serves b, c on http://a:1\n" in text
    assert "Asleep, loaded at first use: b\n" in text
    assert '"model":"c"' in text
    assert '"model":"b"' in banner("http://a:1", ["d", "b"], Served(["d"], ["b"]))


def test_a_closed_pipe_is_no_failure() -> None:
    """`penstock up | true` goes on serving, and at its end has nothing to complain about."""
    code = (
        "import sys; from penstock.app.banner import announce; from penstock.app.readiness import Served;"
        "sys.stdin.read(); announce('a', ['b'], Served([], []));"
        "print('later'); print('still here', file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate("", timeout=60)
    assert (process.returncode, errors) == (0, "still here\n")


@pytest.mark.parametrize(("task", "path"), [("embed", "embeddings"), ("score", "rerank")])
def test_an_encoder_is_asked_for_what_it_does(task: Task, path: str) -> None:
    """The model behind it does not chat."""
    text = banner("http://a:1", ["b"], Served([], []), {"b": task})
    line = next(line for line in text.splitlines() if line.startswith("  curl"))
    words = shlex.split(line)
    assert words[1] == f"http://a:1/v1/{path}"
    assert json.loads(words[-1])["model"] == "b"
