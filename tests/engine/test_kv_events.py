"""Who follows the events of a prefix cache knows what is in it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from penstock.engine.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent, KVEventLog
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from tiny_engine import CountingForward, build_core, scripted_core


class Follower:
    """A router's picture of a cache: each block's path."""

    def __init__(self) -> None:
        self.paths: dict[int, tuple[int, ...]] = {}

    def hear(self, events: list[KVEvent]) -> None:
        """Takes events in order; none may come out of turn."""
        for event in events:
            match event:
                case AllBlocksCleared():
                    self.paths.clear()
                case BlockStored(block_hash, parent_hash, tokens, _):
                    assert block_hash not in self.paths
                    before = () if parent_hash is None else self.paths[parent_hash]
                    self.paths[block_hash] = before + tokens
                case BlockRemoved(block_hash):
                    path = self.paths.pop(block_hash)
                    assert not any(
                        other[: len(path)] == path for other in self.paths.values() if other != path
                    )


def cached(core: object) -> list[tuple[int, ...]]:
    """The paths that are really cached."""
    cache = core.scheduler.tables.cache  # type: ignore[attr-defined]
    return sorted(
        tuple(token for one in cache.path_to(node) for token in one.tokens) for _, node in cache.by_recency()
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_follower_knows_the_cache(checkpoint: Path, seed: int) -> None:
    """Under traffic that shares, evicts, preempts and cancels; and who comes later learns the same."""
    rng = random.Random(seed)
    core = build_core(checkpoint, block_size=4, num_blocks=24, max_batch_tokens=16)
    log, follower = KVEventLog(core.scheduler.tables.cache), Follower()
    prompts = [[rng.randrange(100) for _ in range(30)] for _ in range(3)]
    for number in range(40):
        prompt = prompts[rng.randrange(3)][: rng.randrange(1, 30)]
        core.add(Sequence(number, list(prompt), SamplingParams(max_tokens=rng.randrange(1, 12), seed=number)))
        if rng.random() < 0.2:
            core.cancel(rng.randrange(number + 1))
        for _ in range(rng.randrange(6)):
            core.step()
            follower.hear(log.take())
            assert sorted(follower.paths.values()) == cached(core)
    late = Follower()
    late.hear(list(log.whole()))
    assert late.paths == follower.paths
    assert core.stats().num_evictions > 0


def test_salts_are_kept_apart_and_not_told() -> None:
    """Equal tokens under two salts are two blocks."""
    core = scripted_core(CountingForward(), max_batch_tokens=64)
    log = KVEventLog(core.scheduler.tables.cache)
    for number, salt in enumerate(["", "secret", "other"]):
        core.add(Sequence(number, list(range(9)), SamplingParams(max_tokens=1), cache_salt=salt))
    while core.has_work:
        core.step()
    events = [event for event in log.take() if isinstance(event, BlockStored)]
    assert len({event.block_hash for event in events}) == len(events) == 6
    assert [event.is_salted for event in events] == [False, False, True, True, True, True]
    assert "secret" not in repr(events)


def test_a_reset_clears_all() -> None:
    """Blocks that were lost are not kept in mind."""
    core = scripted_core(CountingForward())
    log = KVEventLog(core.scheduler.tables.cache)
    core.add(Sequence(1, list(range(9)), SamplingParams(max_tokens=1)))
    while core.has_work:
        core.step()
    core.scheduler.tables.reset()
    assert log.take() == [AllBlocksCleared()]
    assert list(log.whole()) == [AllBlocksCleared()]
