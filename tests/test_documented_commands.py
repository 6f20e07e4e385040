"""What the documentation tells people to type works: every `sh` block of README and docs is tried here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from penstock.app.main import app
from running_service import RunningService

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]
ADDRESS = "http://127.0.0.1:8080"
# Commands that end by themselves and need nothing: they are run, not only read.
RUN = {"config", "version"}


def blocks(language: str) -> list[tuple[Path, str]]:
    fence = re.compile(rf"^ *```{language}\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    return [(page, found) for page in PAGES for found in fence.findall(page.read_text(encoding="utf-8"))]


def lines() -> list[tuple[str, str]]:
    found = []
    for page, block in blocks("sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append((page.name, shlex.join(words)))
    return found


def lines_of(program: str) -> list[tuple[str, str]]:
    return [(page, line) for page, line in lines() if Path(shlex.split(line)[0]).name == program]


def test_every_line_is_of_a_program_that_is_tried() -> None:
    programs = {Path(shlex.split(line)[0]).name for _, line in lines()}
    assert programs <= {"penstock", "curl", "make", "pip"}, programs


@pytest.mark.parametrize(("page", "line"), lines_of("penstock"))
def test_a_penstock_line_is_understood(page: str, line: str, tmp_path: Path) -> None:
    """Command and options exist; what ends by itself also runs and ends well."""
    arguments = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    name = "penstock"
    while hasattr(command, "commands"):
        name, command = arguments[0], command.commands[arguments[0]]
        arguments = arguments[1:]
    with command.make_context(name, list(arguments)):
        pass
    first = shlex.split(line)[1]
    if first in RUN:
        words = [sys.executable, "-m", "penstock", *shlex.split(line)[1:]]
        subprocess.run(words, check=True, capture_output=True, timeout=60, cwd=tmp_path)


@pytest.mark.parametrize(("page", "line"), lines_of("make"))
def test_a_make_line_names_a_target(page: str, line: str) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert shlex.split(line)[1] in targets


@pytest.fixture(scope="module")
def address() -> object:
    """`penstock up` with the built-in model, as the README starts it, on a free port."""
    with RunningService("up", "--port", "0") as service:
        yield service.wait_announced()


def test_every_curl_line_is_answered(address: str) -> None:
    tried = lines_of("curl")
    assert tried
    for page, line in tried:
        assert ADDRESS in line, f"{page}: {line}"
        words = shlex.split(line.replace(ADDRESS, address))
        subprocess.run([*words, "--fail", "--silent"], check=True, capture_output=True, timeout=60)


def test_the_first_question_is_answered_with_68(address: str) -> None:
    """The one line that `make up` prints and the README shows."""
    (first,) = {line for page, line in lines_of("curl") if page == "README.md"}
    words = shlex.split(first.replace(ADDRESS, address))
    done = subprocess.run([*words, "--fail", "--silent"], check=True, capture_output=True, timeout=60)
    assert b'"content":"68"' in done.stdout


def test_every_python_block_runs(address: str) -> None:
    found = blocks("python")
    assert found
    for _, code in found:
        code = code.replace(ADDRESS, address)
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
        assert done.stdout.decode().strip() == "milk, bread, apple"
