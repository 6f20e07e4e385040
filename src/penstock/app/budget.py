"""The memory that all engines of this machine may take together, and who has taken how much.

An engine is charged what it announced before it loaded, or what it really holds if that is more: a KV pool is
filled as it is used, so what an engine holds today says little of tomorrow.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from penstock.base.errors import ModelLoadError
from penstock.fleet.settings import MIN_MEMORY_MB

logger = structlog.get_logger(__name__)
MIB = 1 << 20
# Charged to an engine until it has announced what it needs.
PLANNING_BYTES = MIN_MEMORY_MB * MIB
# What engines really hold changes without notice; who waits for room looks this often.
RECHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Charge:
    """What one engine takes."""

    num_bytes: int
    is_kept: bool
    """True if it is not unloaded for another's sake."""
    pid: int | None = None


class Budget:
    """Admits engines one after the other; nobody is admitted beyond the limit."""

    def __init__(self, limit_bytes: int, ask: Callable[[Sequence[str]], None]) -> None:
        """`limit_bytes` of 0 is no limit. `ask` is given the engines of which one may be unloaded to make
        room, and nobody when none has to be any more.
        """
        self.limit_bytes = limit_bytes
        self._ask = ask
        self._charges: dict[str, Charge] = {}
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, timeout_s: float | None) -> AsyncIterator[None]:
        """One engine at a time, from its start to its admission: two that each hold a place and wait for the
        other's would wait for ever.

        Raises:
            TimeoutError: it was not this engine's turn within `timeout_s` seconds.
        """
        async with asyncio.timeout(timeout_s):
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    def holds(self, name: str) -> bool:
        """True if the engine is charged."""
        return name in self._charges

    def charged_bytes(self, name: str) -> int:
        """What an engine takes now."""
        charge = self._charges[name]
        return max(charge.num_bytes, 0 if charge.pid is None else resident_bytes(charge.pid))

    def set(self, name: str, charge: Charge) -> None:
        """Charges an engine, whether it fits or not."""
        self._charges[name] = charge
        self._changed.set()

    def release(self, name: str) -> None:
        """The engine has ended and will not be started by itself."""
        self._charges.pop(name, None)
        self._changed.set()

    def nudge(self) -> None:
        """Makes who waits for room ask again."""
        self._changed.set()

    async def take(self, name: str, charge: Charge, description: str, timeout_s: float | None) -> None:
        """Waits for room, for `timeout_s` seconds or as long as it takes, and charges the engine.

        Raises:
            ModelLoadError: it can never fit beside the engines that are kept.
            TimeoutError: nothing that could have made room became idle in time.
        """
        if not self._fits(name, charge):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._make_room(name, charge, description)
            finally:
                self._ask(())
        self.set(name, charge)

    async def _make_room(self, name: str, charge: Charge, description: str) -> None:
        while not self._fits(name, charge):
            self._refuse_impossible(name, charge, description)
            logger.info(
                "an engine waits for room",
                engine=name,
                needs_mib=charge.num_bytes // MIB,
                taken_mib=self._taken_bytes(name) // MIB,
                allowed_mib=self.limit_bytes // MIB,
            )
            self._changed.clear()
            self._ask(self._victims(name))
            await self._wait_for_room(name, charge)

    async def _wait_for_room(self, name: str, charge: Charge) -> None:
        """Returns when somebody came or went, or when what is held has shrunk enough."""
        while not self._fits(name, charge):
            try:
                async with asyncio.timeout(RECHECK_S):
                    await self._changed.wait()
                return
            except TimeoutError:
                continue

    def _fits(self, name: str, charge: Charge) -> bool:
        return not self.limit_bytes or self._taken_bytes(name) + charge.num_bytes <= self.limit_bytes

    def _taken_bytes(self, name: str) -> int:
        """By all but one."""
        return sum(self.charged_bytes(other) for other in self._charges if other != name)

    def _victims(self, name: str) -> list[str]:
        return [other for other, charge in self._charges.items() if other != name and not charge.is_kept]

    def _refuse_impossible(self, name: str, charge: Charge, description: str) -> None:
        kept = sum(
            self.charged_bytes(other)
            for other, held in self._charges.items()
            if other != name and held.is_kept
        )
        if kept + charge.num_bytes > self.limit_bytes:
            beside = f" beside {kept / MIB:.0f} MiB of models that are kept loaded" if kept else ""
            raise ModelLoadError(
                f"it needs {charge.num_bytes / MIB:.0f} MiB ({description}){beside}, engines.memory_mb "
                f"allows {self.limit_bytes // MIB}; raise it, or lower the model's kv_cache_mb",
                param="engines.memory_mb",
            )


def resident_bytes(pid: int) -> int:
    """The memory that a process holds now; 0 if it has ended or the system does not say (not Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
