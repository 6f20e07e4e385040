"""Starting and ending one child process."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.app.link import FROM_CHILD, FromChild, Link

# How a child ends that refuses its arguments or its model.
EXIT_USAGE = 2
# How a replica ends whose engine was stuck (EX_SOFTWARE of sysexits.h).
EXIT_STUCK = 70


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run: `penstock COMMAND ARGUMENTS`. The child inherits `listener` and serves on it."""

    name: str
    command: str
    arguments: Sequence[str]
    listener: socket.socket
    environment: Mapping[str, str]


class Child:
    """A running child process with the supervisor's end of its link."""

    def __init__(self, spec: ChildSpec, process: asyncio.subprocess.Process, link: Link[FromChild]) -> None:
        self.spec = spec
        self.process = process
        self.link = link

    @staticmethod
    async def start(spec: ChildSpec) -> Child:
        """Starts the process in a session of its own, so that Ctrl-C reaches it only through us."""
        ours, theirs = socket.socketpair()
        link = await Link.open(ours, FROM_CHILD)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "penstock",
                    spec.command,
                    f"--fd={spec.listener.fileno()}",
                    f"--link={theirs.fileno()}",
                    *spec.arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    env=dict(spec.environment),
                    pass_fds=(spec.listener.fileno(), theirs.fileno()),
                    start_new_session=True,
                )
        except BaseException:
            link.close()
            raise
        return Child(spec, process, link)

    async def wait(self) -> int:
        """Waits for the end; the exit status, negative for a signal."""
        return await self.process.wait()

    async def stop(self, timeout_s: float) -> None:
        """Asks the child to drain and end; kills it if it has not after `timeout_s` seconds."""
        if self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()

    def kill(self) -> None:
        """Ends the child at once."""
        if self.process.returncode is None:
            self.process.kill()


def local_url(listener: socket.socket) -> str:
    """The API root of a child that serves on `listener`."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
