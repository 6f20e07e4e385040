"""What lands on standard error; in a process of its own, since logging is set up once per process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging, structlog
from penstock.observe.logs import set_up_logs
set_up_logs({level!r}, {form!r}, "gateway")
log = structlog.get_logger("x")
log.debug("quiet")
log.info("request", path="/a\\n{{\\"event\\": \\"forged\\"}}\\x1b[31m", text="\\u6c34")
logging.getLogger("library").warning("from %s", "elsewhere")
try:
    secret = "sk-kept-to-ourselves"
    raise RuntimeError("boom")
except RuntimeError:
    log.exception("failed")
"""


def run(level: str, form: str) -> list[str]:
    script = SCRIPT.format(level=level, form=form)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_has_one_object_per_line() -> None:
    """With role, level, time, and text as it is, whoever logged."""
    request, library, failed = [json.loads(line) for line in run("info", "json")]
    assert request["path"] == '/a\n{"event": "forged"}\x1b[31m'
    assert (request["event"], request["role"], request["level"], request["text"]) == (
        "request",
        "gateway",
        "info",
        "水",
    )
    assert (library["event"], library["role"]) == ("from elsewhere", "gateway")
    assert failed["exception"][0]["exc_value"] == "boom"
    assert all(line["timestamp"].endswith("Z") for line in (request, library, failed))


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variables(form: str) -> None:
    """They hold prompts and keys. (The script's own source line is not shown, as it is run from a string.)"""
    text = "".join(run("info", form))
    assert "boom" in text
    assert "sk-kept-to-ourselves" not in text


def test_auto_is_json_away_from_a_terminal() -> None:
    """Log collectors read pipes."""
    assert json.loads(run("info", "auto")[0])["event"] == "request"


def test_what_clients_send_cannot_forge_a_line() -> None:
    """Neither a line of its own nor an escape sequence that the terminal obeys."""
    lines = run("info", "console")
    assert not any(line.startswith("{") for line in lines)
    assert "\x1b" not in lines[0]
    assert "request" in lines[0]


def test_the_level_is_a_threshold() -> None:
    """Of our own loggers and of libraries'."""
    assert len(run("debug", "json")) == 4
    assert [json.loads(line)["event"] for line in run("error", "json")] == ["failed"]
