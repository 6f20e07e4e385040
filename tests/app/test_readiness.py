"""Waiting until what was started serves."""

from __future__ import annotations

from penstock.app.readiness import Served, wait_served
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Pool
from scripted_upstream import ScriptedUpstream, answering, answering_once, whole


def state(**models: bool) -> bytes:
    """What /readyz answers."""
    replicas = ",".join(
        f'"{name}":{{"{name}/0":{str(is_ready).lower()}}}' for name, is_ready in models.items()
    )
    status = b"200 OK" if any(models.values()) else b"503 Service Unavailable"
    return whole(b'{"status":"x","replicas":{%b}}' % replicas.encode(), status)


async def test_it_waits_for_the_models_asked_for() -> None:
    """Through broken answers, and not for others, which it names."""
    broken, answers = answering_once(b"garbage"), answering(state(a=False, b=False), state(a=True, b=False))
    async with ScriptedUpstream(broken, answers) as gateway:
        pool = Pool("127.0.0.1", gateway.port, "x", UpstreamSettings())
        assert await wait_served(pool, ["a"]) == Served(["b"], [])
        assert len(gateway.peers[1].requests) == 2
        assert await wait_served(pool, []) == Served(["b"], [])
        pool.close()


async def test_models_that_are_asleep_are_not_waited_for() -> None:
    """They are told apart from those that nobody serves."""
    body = (
        b'{"status":"x","replicas":{"a":{"a/0":false},"b":{"b/0":false},"c":{"c/0":false}},'
        b'"models":{"a":"asleep","b":"failed"}}'
    )
    async with ScriptedUpstream(answering(whole(body))) as gateway:
        pool = Pool("127.0.0.1", gateway.port, "x", UpstreamSettings())
        assert await wait_served(pool, []) == Served(["b", "c"], ["a"])
        pool.close()
