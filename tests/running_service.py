"""A `penstock` process, started and stopped as a user would. Every wait has a bound: a hang is a failure."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LIMIT_S = 60.0


class RunningService:
    """`python -m penstock ARGUMENTS`. Leaving the block kills what is left of it, children included."""

    def __init__(self, *arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK__")}
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,
        )
        self._output = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = [*self.children(), self.process.pid] if self.process.poll() is None else []
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(LIMIT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()

    @property
    def stderr(self) -> str:
        """What it wrote to standard error so far."""
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode()

    @property
    def stdout(self) -> str:
        """What :meth:`wait_announced` read of standard output."""
        return self._output.decode()

    def close_stdout(self) -> None:
        """Stops reading, as a pipe's other end that has ended."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of a name in its log."""
        lines = [
            json.loads(line)
            for line in self.stderr.splitlines()
            if line.startswith("{") and line.endswith("}")
        ]
        return [line for line in lines if line.get("event") == name]

    def wait_announced(self) -> str:
        """Waits for the line that tells the address; gives the address."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + LIMIT_S
        while b" on http://" not in self._output or not self._output.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(descriptor, 65_536) if ready else b""
            assert data, f"it never announced itself:\n{self.stderr}"
            self._output += data
        return self._output.split(b" on ", 1)[1].split(b"\n", 1)[0].decode()

    def wait(self) -> int:
        """Waits for its end; the exit status."""
        return self.process.wait(LIMIT_S)

    def children(self) -> list[int]:
        """Process ids of its children."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def child(self, role: str) -> int:
        """The child that runs `penstock ROLE`."""
        (pid,) = [
            pid
            for pid in self.children()
            if role.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ]
        return pid


def wait_ended(pids: list[int], limit_s: float = LIMIT_S) -> None:
    """Waits until processes that are not ours to wait for have ended."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            assert poll.poll(limit_s * 1000), f"process {pid} still runs"
        finally:
            os.close(descriptor)


def sockets(pid: int) -> set[str]:
    """The sockets that a process holds, by inode."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return {link for link in links if link.startswith("socket:")}


def listening_port(pid: int) -> int:
    """The port on which a process listens."""
    inodes = {link.removeprefix("socket:[").removesuffix("]") for link in sockets(pid)}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return int(fields[1].rsplit(":", 1)[1], 16)
    raise AssertionError(f"process {pid} listens nowhere")
