"""Stopping with grace: running requests finish, new ones are refused."""

from __future__ import annotations

import asyncio
from types import TracebackType

from penstock.base.errors import DrainingError

# Told to refused clients: about the time in which a restarted server answers again.
RETRY_AFTER_S = 10


class Drain:
    """Counts running requests; once begun, admits no more and tells when the last has ended.

    Use it as a context manager around each request.
    """

    def __init__(self) -> None:
        self.num_running = 0
        self.is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        if self.is_draining:
            raise DrainingError(
                "the server is shutting down and takes no new requests; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self.num_running += 1
        self._idle.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.num_running -= 1
        if not self.num_running:
            self._idle.set()

    def begin(self) -> None:
        """From now on new requests are refused."""
        self.is_draining = True

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request runs; False if `timeout_s` seconds passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
