"""The line between supervisor and child: the child says "ready", and each notices when the other is gone.

It is one end each of a socket pair. The kernel closes an end when its process dies, however it dies, so no
child outlives its supervisor and no supervisor waits for a dead child.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

READY = b"ready\n"


class ChildLink:
    """The child's end."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Calls `on_gone` on the running loop when the supervisor is gone; call it on that loop."""
        loop = asyncio.get_running_loop()

        def readable() -> None:  # the supervisor never sends: readable means closed
            loop.remove_reader(self._socket)
            on_gone()

        loop.add_reader(self._socket, readable)

    def tell_ready(self) -> None:
        """Tells the supervisor that the process serves."""
        try:
            self._socket.send(READY)
        except OSError:
            return  # it is gone, which `watch` tells

    def close(self) -> None:
        """Gives the line up; processes leave it to their end."""
        self._socket.close()


async def wait_ready(end: socket.socket) -> bool:
    """The supervisor's side: True when the child says it is ready, False when it is gone."""
    data = await asyncio.get_running_loop().sock_recv(end, len(READY))
    return bool(data)
