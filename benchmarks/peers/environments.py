"""Environments of the engines compared, and the checkpoint in their formats: made once, under .bench/."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
ROOT = BENCHMARKS.parent / ".bench"
LOGS = ROOT / "logs"
MODELS = ROOT / "models"
_REPORT_EVERY_S = 20.0
_LINES_OF_LOG = 25


@dataclass(frozen=True, slots=True)
class Environment:
    """What is installed for an engine."""

    requirements: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    """Set while installing."""
    note: str = ""
    unwanted: tuple[str, ...] = ()
    """Taken out again."""


_TORCH = ("torch==2.13.0", "transformers==5.23.0")
ENVIRONMENTS = {
    "transformers": Environment(_TORCH),
    "openvino": Environment(
        ("openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0", "torch==2.13.0"),
        # Only for images, and it fails to load beside a torch from another index.
        unwanted=("torchvision",),
    ),
    "llama.cpp": Environment(
        ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy>=2"),
        {
            # A wheel of someone else's build would lack this processor's instructions.
            "PIP_NO_BINARY": "llama-cpp-python",
            "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF",
            "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
        },
        "compiles llama.cpp for this processor: about 10 minutes on two cores",
    ),
    "tutorial": Environment((*_TORCH, "fastapi==0.165.0", "uvicorn==0.54.0")),
}


class PreparationError(Exception):
    """Something that has to be there first could not be made; the message says what to look at."""


def run_logged(what: str, command: Sequence[str], log: Path, variables: dict[str, str]) -> None:
    """Runs a long command with its output in `log`, saying now and then that it still runs.

    Raises:
        PreparationError: it failed; the message has the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{what} (output in {log})", file=sys.stderr, flush=True)
    started = told = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | variables, cwd=BENCHMARKS
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - told > _REPORT_EVERY_S:
                    told = time.monotonic()
                    print(f"  ... {told - started:.0f} s", file=sys.stderr, flush=True)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_OF_LOG:])
        raise PreparationError(f"{what}: failed with {process.returncode}\n{end}")


def ensure_environment(name: str, pip_arguments: str = "") -> Path:
    """The Python of an engine's environment, installed if it is not there or was installed otherwise.

    Raises:
        PreparationError: the installation failed.
    """
    environment = ENVIRONMENTS[name]
    directory = ROOT / "envs" / name
    python, marker = directory / "bin" / "python", directory / "installed"
    wanted = "\n".join(environment.requirements)
    if marker.is_file() and marker.read_text("utf-8") == wanted:
        return python
    if not python.exists():
        shutil.rmtree(directory, ignore_errors=True)
        command = [sys.executable, "-m", "venv", str(directory)]
        run_logged(f"making {directory}", command, LOGS / f"venv-{name}.log", {})
    note = f"; {environment.note}" if environment.note else ""
    command = [str(python), "-m", "pip", "install", *shlex.split(pip_arguments), *environment.requirements]
    what = f"installing {', '.join(environment.requirements)}{note}"
    run_logged(what, command, LOGS / f"install-{name}.log", environment.variables)
    if environment.unwanted:
        command = [str(python), "-m", "pip", "uninstall", "--yes", *environment.unwanted]
        run_logged("removing what is in the way", command, LOGS / f"uninstall-{name}.log", {})
    marker.write_text(wanted, "utf-8")
    return python


def ensure_gguf(python: Path, checkpoint: Path) -> Path:
    """The checkpoint as GGUF with Q8_0 matrices."""
    out = MODELS / f"{checkpoint.name}-{_version(checkpoint)}.q8_0.gguf"
    if not out.is_file():
        partial = out.with_suffix(".partial")
        command = [str(python), "-m", "peers.gguf_export", str(checkpoint), str(partial)]
        run_logged(f"converting to {out}", command, LOGS / "gguf.log", {})
        partial.replace(out)
    return out


def ensure_openvino(python: Path, checkpoint: Path) -> Path:
    """The checkpoint as OpenVINO's model with int8 weights."""
    out = MODELS / f"{checkpoint.name}-{_version(checkpoint)}-openvino-int8"
    if not out.is_dir():
        partial = out.with_name(f"{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [
            str(python.with_name("optimum-cli")),
            *("export", "openvino", "--model", str(checkpoint), "--task", "text-generation-with-past"),
            *("--weight-format", "int8", str(partial)),
        ]
        run_logged(f"exporting to {out}", command, LOGS / "openvino-export.log", {"HF_HUB_OFFLINE": "1"})
        partial.replace(out)
    return out


def _version(checkpoint: Path) -> str:
    return (checkpoint / "written").read_text("ascii")
