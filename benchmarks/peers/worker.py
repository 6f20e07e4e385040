"""The benchmark's end of the line to a worker, which is stopped whenever it is not asked something.

A stopped process runs no thread at all, so one engine's idle spinning cannot slow another one down.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from peers.environments import BENCHMARKS, LOGS
from peers.protocol import Unsupported

_END_TIMEOUT_S = 20


class WorkerError(Exception):
    """A worker failed, died, or did not answer in time."""


class Worker:
    """A process that measures one engine."""

    def __init__(self, name: str, python: Path, module: str, threads: int) -> None:
        self.name = name
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"worker-{name}.log"
        variables = {
            "PYTHONPATH": str(BENCHMARKS),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", f"peers.{module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | variables,
            )
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, op: str, timeout_s: float = 900.0, **given: Any) -> Any:
        """The worker's answer; meanwhile, and only meanwhile, it runs.

        Raises:
            Unsupported: the engine cannot do this.
            WorkerError: anything else that went wrong.
        """
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is told below
            self._process.stdin.write(json.dumps({"op": op, **given}).encode() + b"\n")
            self._process.stdin.flush()
        answer = json.loads(self._line(timeout_s))
        self._process.send_signal(signal.SIGSTOP)
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        if "error" in answer:
            raise WorkerError(f"{self.name} failed at {op}:\n{answer['error']}(its output: {self.log})")
        return answer["ok"]

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerError(f"{self.name} did not answer within {timeout_s:g} s; see {self.log}")
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise WorkerError(f"{self.name} ended (exit code {self._process.wait()}); see {self.log}")
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line
