"""Which replicas are ready, by asking them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from penstock.base.errors import CapacityError, PenstockError
from penstock.fleet.catalog import Replica, Snapshot
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Call, Pool

logger = structlog.get_logger(__name__)


class HealthBoard:
    """The last known state of every replica; unknown is not ready."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._is_ready: dict[str, bool] = {}
        self._resting: set[str] = set()
        self._num_replicas = sum(map(len, snapshot.replicas.values()))
        self._all_known = asyncio.Event()

    def is_ready(self, replica: Replica) -> bool:
        """True if the replica answered its last health check and could be connected to since."""
        return self._is_ready.get(replica.id, False)

    def ready(self, model: str) -> list[Replica]:
        """The model's ready replicas."""
        return [replica for replica in self._snapshot.replicas[model] if self.is_ready(replica)]

    async def wait_known(self, timeout_s: float) -> bool:
        """Waits until every replica was checked once; False if `timeout_s` seconds passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_known.wait()
        except TimeoutError:
            return False
        return True

    def states(self) -> dict[str, dict[str, bool]]:
        """Readiness by model and replica."""
        return {
            model: {replica.id: self.is_ready(replica) for replica in replicas}
            for model, replicas in self._snapshot.replicas.items()
        }

    def set_ready(self, replica: Replica, is_ready: bool) -> None:
        """Records what a check, or a failed attempt to connect, said of a replica; logs changes."""
        if replica.id in self._resting:
            return  # a check that began before it rested
        if self._is_ready.get(replica.id) != is_ready:
            logger.info("replica ready" if is_ready else "replica not ready", replica=replica.id)
        self._record(replica, is_ready)

    def is_resting(self, replica: Replica) -> bool:
        """True if its process is known not to be there, so that there is nobody to ask."""
        return replica.id in self._resting

    def set_resting(self, replica: Replica, is_resting: bool) -> None:
        """Records what the owner of its process said: it rests, which is not ready, or it serves."""
        if is_resting:
            self._resting.add(replica.id)
        else:
            self._resting.discard(replica.id)
        self._record(replica, not is_resting)

    def _record(self, replica: Replica, is_ready: bool) -> None:
        self._is_ready[replica.id] = is_ready
        if len(self._is_ready) == self._num_replicas:
            self._all_known.set()


async def watch(
    snapshot: Snapshot, pools: Mapping[str, Pool], board: HealthBoard, settings: UpstreamSettings
) -> None:
    """Checks every replica for ever, each at its own pace; cancel it to stop."""

    async def watch_one(replica: Replica) -> None:
        while True:
            if not board.is_resting(replica):
                is_ready = await _check(pools[replica.id], replica, settings.health_timeout_s)
                if is_ready is not None:
                    board.set_ready(replica, is_ready)
            await asyncio.sleep(settings.health_interval_s)

    async with asyncio.TaskGroup() as tasks:
        for replicas in snapshot.replicas.values():
            for replica in replicas:
                tasks.create_task(watch_one(replica), name=f"health of {replica.id}")


async def _check(pool: Pool, replica: Replica, timeout_s: float) -> bool | None:
    """None if all connections are in use: that is load, not illness."""
    try:
        async with asyncio.timeout(timeout_s), pool.request(Call("GET", replica.health_path)) as answer:
            while await answer.read() is not None:
                pass
            return answer.status == 200
    except CapacityError:
        return None
    except (PenstockError, TimeoutError):
        return False
