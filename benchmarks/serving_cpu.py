"""Compares `penstock up` under 16 users with the tutorial server: FastAPI around transformers' `generate`.

Both serve the random checkpoint of engine_cpu.py, and both run all the time: a server that nobody asks uses
next to no processor time, which is measured and recorded. They are asked in turn, with the same requests:
first by users who ask again at once (closed loop), then by Poisson arrivals of one rate for both, chosen in
the warm-up as RATE_FACTOR times what the tutorial server can do. The tutorial server gets only the first
requests of each turn, as it is slow; those that follow have the same lengths. The load generator shares the
processor with both; its part is recorded too.

A whole run (at least 5 repeats) writes benchmarks/results/serving_cpu.json and the tables of
docs/benchmarks.md; another one writes .bench/serving_cpu.json.

usage: python benchmarks/serving_cpu.py [--repeats 5] [--users 16] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from peers.checkpoint import ensure_checkpoint
from peers.environments import BENCHMARKS, LOGS, MODELS, ROOT, PreparationError, ensure_environment
from peers.figures import busy_share, machine, write_between_markers
from peers.lifetime import unwind_when_terminated
from peers.load import Request, draw, play
from peers.serving_report import OURS, TUTORIAL, bars, markdown

RESULTS = BENCHMARKS / "results" / "serving_cpu.json"
PARTIAL_RESULTS = ROOT / "serving_cpu.json"
PAGE = BENCHMARKS.parent / "docs" / "benchmarks.md"
LEAST_REPEATS = 5
# The rate of Poisson arrivals, against what the tutorial server can do: enough to tell 10 times from less.
RATE_FACTOR = 20.0
MODES = ("closed", "poisson")
_ADDRESS = re.compile(r"on http://127\.0\.0\.1:(\d+)$")
_STOP_TIMEOUT_S = 60


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Server:
    """A server of ours or theirs, on a free port, from the first line that says where it serves."""

    def __init__(self, name: str, command: Sequence[str], is_streamed: bool) -> None:
        self.name = name
        self.is_streamed = is_streamed
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"server-{name}.log"
        variables = {"PYTHONPATH": str(BENCHMARKS), "HF_HUB_OFFLINE": "1"}
        with log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=output, text=True, env=os.environ | variables
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := _ADDRESS.search(line.strip()):
                self.port = int(found[1])
                return
        self._process.wait()
        raise PreparationError(f"{name} ended before it served; see {log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As Ctrl-C does."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """Processor time that it and its children have used so far."""
        ticks, family = 0, {self._process.pid}
        for directory in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
            try:
                fields = (directory / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(directory.name) in family or int(fields[1]) in family:
                family.add(int(directory.name))
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--requests", type=int, default=192, help="for ours, per turn")
    parser.add_argument("--tutorial-requests", type=int, default=32, help="for the tutorial server, per turn")
    parser.add_argument("--rate", type=float, help="of Poisson arrivals per second; default: by the warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the requests")
    parser.add_argument("--pip-args", default="", help="given to pip, e.g. an index with CPU builds of torch")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the tables")
    return parser.parse_args()


def one_turn(
    server: Server, idle: Server, model: str, requests: Sequence[Request], users: int, rate: float | None
) -> dict[str, float]:
    """One server under load, the other watched for what it uses meanwhile."""
    before = idle.cpu_seconds()
    found = asyncio.run(play(server.port, model, requests, users, rate, server.is_streamed))
    found["idle_server_cpu_share"] = (idle.cpu_seconds() - before) / found["seconds"]
    return found


def measure(given: argparse.Namespace, servers: Sequence[Server], checkpoint: Path) -> dict[str, Any]:
    """All turns; in the warm-up both servers get a few requests, which do not count."""
    turns: dict[str, dict[str, list[dict[str, float]]]] = {
        mode: {server.name: [] for server in servers} for mode in MODES
    }
    counts = {OURS: given.requests, TUTORIAL: given.tutorial_requests}
    rate = given.rate
    busy: list[float] = []
    for turn in range(given.repeats + 1):
        busy.append(round(busy_share(), 3))
        for mode in MODES if turn else ("closed",):
            seed = (given.seed * 1000 + turn) * len(MODES) + MODES.index(mode)
            requests = draw(seed, given.requests, given.tutorial_requests, checkpoint / "tokenizer.json")
            for server in servers[:: 1 if turn % 2 else -1]:
                idle = next(other for other in servers if other is not server)
                some = requests[: counts[server.name] if turn else given.users]
                mode_rate = rate if mode == "poisson" else None
                found = one_turn(server, idle, checkpoint.name, some, given.users, mode_rate)
                if turn:
                    turns[mode][server.name].append(found)
                elif server.name == TUTORIAL and rate is None:
                    rate = found["requests_per_s"] * RATE_FACTOR
                say(
                    f"{f'repeat {turn}/{given.repeats}' if turn else 'warm-up'} {mode}, {server.name}: "
                    f"{found['requests_per_s']:.2f} requests/s, P95 {found['latency_p95_s']:.2f} s"
                )
    return {"poisson_rate_per_s": rate, "busy_before_turn": busy, "turns": turns}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Starts both servers and measures."""
    checkpoint = ensure_checkpoint(MODELS)
    python = ensure_environment("tutorial", given.pip_args)
    ours = [sys.executable, "-m", "penstock", "up", "--port", "0", "--model", str(checkpoint)]
    theirs = [str(python), "-m", "peers.tutorial_server", str(checkpoint)]
    with Server(OURS, ours, True) as first, Server(TUTORIAL, theirs, False) as second:
        found = measure(given, (first, second), checkpoint)
    return {
        "machine": machine(),
        "repeats": given.repeats,
        "users": given.users,
        "requests_per_turn": {OURS: given.requests, TUTORIAL: given.tutorial_requests},
        "versions": _versions(python),
        **found,
    }


def _versions(python: Path) -> dict[str, str]:
    from penstock import __version__

    script = (
        "import json, fastapi, torch, transformers, uvicorn;"
        "print(json.dumps({m.__name__: m.__version__ for m in (fastapi, torch, transformers, uvicorn)}))"
    )
    text = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True).stdout
    return {"penstock": __version__, **json.loads(text)}


def main() -> None:
    """Runs, writes and prints."""
    given = read_arguments()
    unwind_when_terminated()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])  # inherited by the servers
    try:
        result = run(given)
    except PreparationError as error:
        raise SystemExit(f"serving_cpu: {error}") from error
    result["bars"] = [bar.to_dict() for bar in bars(result)]
    is_whole = given.repeats >= LEAST_REPEATS
    path = RESULTS if is_whole else PARTIAL_RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = markdown(result)
    if is_whole:
        write_between_markers(PAGE, "serving_cpu", text)
    print(json.dumps(result, indent=2) if given.json else text)
    say(f"written to {path}")


if __name__ == "__main__":
    main()
