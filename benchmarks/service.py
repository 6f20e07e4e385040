"""Measures `penstock up` with the built-in model: time to serve, what the gateway adds, tokens per second.

Everything runs in this one process's children on loopback and stops by itself. The gateway and the replica
behind it are asked in alternation, so that a change of the machine's speed hits both; figures are medians.
Writes benchmarks/results/service.json and prints the table for docs/benchmarks.md.

usage: python benchmarks/service.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import torch

from penstock import __version__
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Call, Pool

RESULTS = Path(__file__).parent / "results" / "service.json"
STREAMS = 16
TOKENS = 64
PLAIN_REQUESTS = 100
START_TIMEOUT_S = 60


def body(max_tokens: int, *, stream: bool) -> bytes:
    """A request that uses up `max_tokens`: a completion of running text, which does not end by itself."""
    request = {
        "model": "tiny",
        "prompt": "Penstock is a gateway and an engine. ",
        "max_tokens": max_tokens,
        "temperature": 1.5,
        "seed": 1,
        "stream": stream,
    }
    return json.dumps(request).encode()


async def ask(pool: Pool, payload: bytes) -> tuple[float, int]:
    """Seconds until the whole answer, and the number of server-sent events in it."""
    started = time.perf_counter()
    events = 0
    async with pool.request(Call("POST", "/v1/completions", body=payload)) as answer:
        assert answer.status == 200, answer.status
        while (chunk := await answer.read()) is not None:
            events += chunk.count(b"data: ")
    return time.perf_counter() - started, events


async def plain(pool: Pool) -> float:
    """Median milliseconds of one-token answers, one after the other."""
    payload = body(1, stream=False)
    times = [(await ask(pool, payload))[0] for _ in range(PLAIN_REQUESTS)]
    return statistics.median(times) * 1e3


async def streams(pool: Pool) -> float:
    """Events per second of STREAMS streams at once; an event is a token, but for a few per stream."""
    payload = body(TOKENS, stream=True)
    started = time.perf_counter()
    answers = await asyncio.gather(*(ask(pool, payload) for _ in range(STREAMS)))
    return sum(events for _, events in answers) / (time.perf_counter() - started)


async def alternate(
    measure: Callable[[Pool], Awaitable[float]], gateway: Pool, replica: Pool, repeats: int
) -> tuple[list[float], list[float]]:
    """`repeats` measurements of each, in alternation, after one of each that does not count."""
    figures: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for pool, found in zip((gateway, replica), figures, strict=True):
            figure = await measure(pool)
            if turn:
                found.append(figure)
    return figures


class Service:
    """A `penstock up` of our own, on free ports."""

    def __init__(self) -> None:
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "up", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r" on http://127\.0\.0\.1:(\d+)$", line.strip()):
                self.port = int(found[1])
                break
        else:
            raise SystemExit("penstock up ended before it served")
        self.seconds_to_serve = time.perf_counter() - started

    def replica_port(self) -> int:
        """The loopback port of the engine, read from the gateway's child's environment."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if parent == self.process.pid and b"gateway" in command:
                found = re.search(rb"PENSTOCK__MODELS=[^\0]*http://127\.0\.0\.1:(\d+)/v1", environment)
                assert found is not None
                return int(found[1])
        raise SystemExit("found no gateway among the children of penstock up")

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.process.terminate()
        self.process.wait(START_TIMEOUT_S)


def pool(port: int) -> Pool:
    """Connections to a local port."""
    return Pool("127.0.0.1", port, f"127.0.0.1:{port}", UpstreamSettings())


async def measure(service: Service, repeats: int) -> dict[str, dict[str, list[float]]]:
    """All figures of a running service."""
    gateway, replica = pool(service.port), pool(service.replica_port())
    figures = {}
    for name, kind in (("plain_ms", plain), ("stream_events_per_s", streams)):
        through, direct = await alternate(kind, gateway, replica, repeats)
        figures[name] = {"gateway": through, "replica": direct}
    gateway.close()
    replica.close()
    return figures


def summary(values: list[float]) -> str:
    """median (min to max)"""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    starts = []
    for turn in range(repeats):
        service = Service()
        starts.append(service.seconds_to_serve)
        print(f"start {turn + 1}/{repeats}: {starts[-1]:.2f} s", file=sys.stderr)
        if turn < repeats - 1:
            service.stop()
    try:
        figures = asyncio.run(measure(service, repeats))
    finally:
        service.stop()
    result = {
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.system()},
        "versions": {
            "penstock": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "seconds_to_serve": starts,
        **figures,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plain_ms, events = figures["plain_ms"], figures["stream_events_per_s"]
    added = [a - b for a, b in zip(plain_ms["gateway"], plain_ms["replica"], strict=True)]
    print("| work | through the gateway | at the replica | |")
    print("|---|---|---|---|")
    print(f"| `penstock up` to serving, s | {summary(starts)} | | |")
    print(
        f"| one-token answer, 1 connection, ms | {summary(plain_ms['gateway'])} | "
        f"{summary(plain_ms['replica'])} | gateway adds {summary(added)} |"
    )
    ratio = statistics.median(events["gateway"]) / statistics.median(events["replica"])
    print(
        f"| {STREAMS} streams of {TOKENS} tokens, events/s | {summary(events['gateway'])} | "
        f"{summary(events['replica'])} | ratio {ratio:.2f} |"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
