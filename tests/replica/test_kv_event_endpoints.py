"""The stream of cache events over HTTP: the whole first, then what happens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from asgi_call import GUARD_S, Call
from kv_replica import TEXT, Desk, replica, write_model
from loop_turns import until as turns_until
from penstock.replica import kv_event_endpoints


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer that fits."""
    return write_model(tmp_path_factory.mktemp("model"))


def follow(desk: Desk) -> Call:
    """Begins to follow."""
    return Call(desk.application, "GET", "/v1/kv/events", [], ())


def batches(call: Call) -> list[Any]:
    """What has come so far."""
    body = b"".join(message.get("body", b"") for message in call.sent[1:])
    return [json.loads(line[6:]) for line in body.decode().split("\n\n") if line]


async def until(call: Call, count: int) -> list[Any]:
    """All batches, as soon as that many have come."""
    async with asyncio.timeout(GUARD_S):
        await turns_until(lambda: len(batches(call)) >= count)
    return batches(call)


async def leave(call: Call) -> None:
    """Ends following."""
    call.leave()
    await call.ended()


def known(found: list[Any]) -> set[str]:
    """The blocks that a follower believes cached."""
    blocks: set[str] = set()
    for batch in found:
        for event in batch["events"]:
            if event["type"] == "AllBlocksCleared":
                blocks.clear()
            elif event["type"] == "BlockStored":
                assert event["parent_block_hash"] is None or event["parent_block_hash"] in blocks
                assert len(event["token_ids"]) == event["block_size"]
                blocks |= set(event["block_hashes"])
            else:
                blocks -= set(event["block_hashes"])
    return blocks


async def test_who_comes_early_and_who_comes_late_know_the_same(directory: Path) -> None:
    """And both know what the engine says of itself."""
    async with replica(directory, kv_events=True) as desk:
        early = follow(desk)
        await until(early, 1)
        await desk.ask()
        await desk.ask(TEXT[:80] + "other")
        stats = desk.model.service.stats()
        found = await until(early, 3)
        assert [batch["seq"] for batch in found] == sorted(batch["seq"] for batch in found)
        late = follow(desk)
        whole = await until(late, 1)
        async with asyncio.timeout(GUARD_S):
            await turns_until(lambda: known(batches(early)) == known(whole))
        assert len(known(whole)) == stats.num_cached_blocks > 0
        await leave(early)
        await leave(late)


async def test_a_follower_who_has_missed_batches_is_told_the_whole(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing grows without a bound for whoever reads slowly."""
    monkeypatch.setattr(kv_event_endpoints, "MAX_WAITING", 1)
    async with replica(directory, kv_events=True) as desk:
        call = follow(desk)
        await until(call, 1)
        for end in range(40, 200, 40):
            await desk.ask(TEXT[:end] + str(end))
        late = follow(desk)
        whole = await until(late, 1)
        async with asyncio.timeout(GUARD_S):
            await turns_until(lambda: known(batches(call)) == known(whole))
        await leave(call)
        await leave(late)


async def test_followers_are_few(directory: Path) -> None:
    """Each costs the event loop its share; one that leaves makes room."""
    async with replica(directory, kv_events=True) as desk:
        calls = [follow(desk) for _ in range(kv_event_endpoints.MAX_FOLLOWERS)]
        for call in calls:
            await until(call, 1)
        refused = await follow(desk).answer()
        assert (refused.status, refused.headers[b"retry-after"]) == (503, b"5")
        await leave(calls.pop())
        calls.append(follow(desk))
        await until(calls[-1], 1)
        for call in calls:
            await leave(call)


async def test_events_are_served_only_where_asked_for(directory: Path) -> None:
    """They hold the tokens of prompts."""
    async with replica(directory) as desk:
        assert (await follow(desk).answer()).status == 404
