"""Imports and exports beside requests in a tight pool: no token changes, and no block is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.engine.block_tables import Pin
from penstock.engine.core import EngineCore
from penstock.engine.kv_archive import ArchiveReader, ArchiveWriter, Record
from penstock.engine.kv_store import KVStore
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Output, Sequence
from tiny_engine import build_core, new_tokens, run_to_end

VOCAB_SIZE = 131
NEW_TOKENS = 12
PREFIX = torch.randint(VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(4)).tolist()
BRANCHES = [(60, [1, 2, 3]), (60, [1, 2, 4]), (33, [5] * 20), (16, [6]), (0, [7] * 40)]
SALTS = ("", "tenant")


def requests() -> list[Sequence]:
    """Fresh sequences that share prefixes of different lengths, greedy and drawn, of two tenants."""
    return [
        Sequence(
            index,
            PREFIX[:shared] + rest,
            SamplingParams(max_tokens=NEW_TOKENS, temperature=float(index % 2), seed=index),
            cache_salt=SALTS[index % 2],
        )
        for index, (shared, rest) in enumerate(BRANCHES)
    ]


def store_of(core: EngineCore) -> KVStore:
    """The core's door; the engines of a test are all alike."""
    runner: Any = core.runner
    return KVStore(core.scheduler.tables, runner.pages, {"weights": "of this test"})


def export(store: KVStore, salt: str) -> list[Record]:
    """What is cached of PREFIX, as it arrives elsewhere."""
    pin = store.pin(salt, [*PREFIX, 0])
    writer = ArchiveWriter(store.shape, len(pin.path))
    data = writer.head + writer.root(salt)[1]
    pages = store.read_pinned(pin, 0, len(pin.path))
    assert pages is not None
    for index, (node, page) in enumerate(zip(pin.path, pages, strict=True)):
        data += b"".join(writer.block(index, node.tokens, page.data)[1])
    store.unpin([pin])
    reader = ArchiveReader(store.shape)
    records = reader.feed(data)
    assert reader.is_complete
    return records


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> tuple[dict[int, list[int]], list[list[Record]]]:
    """Every request's tokens, each from an engine of its own, and archives of PREFIX for both tenants."""
    cold = {}
    for index in range(len(BRANCHES)):
        cold |= new_tokens(run_to_end(build_core(checkpoint), [requests()[index]]))
    core = build_core(checkpoint)
    run_to_end(core, requests())
    return cold, [export(store_of(core), salt) for salt in SALTS]


@pytest.mark.parametrize("seed", range(8))
def test_transfers_beside_requests_change_no_token(
    checkpoint: Path, source: tuple[dict[int, list[int]], list[list[Record]]], seed: int
) -> None:
    """Strangers come and are cancelled, and blocks are evicted meanwhile."""
    cold, archives = source
    rng = random.Random(seed)
    core = build_core(checkpoint, num_blocks=28, max_batch_tokens=rng.choice([9, 40]))
    store = store_of(core)
    joining = requests() + [
        Sequence(100 + index, PREFIX[: rng.randint(1, 60)], SamplingParams(max_tokens=20, seed=index))
        for index in range(12)
    ]
    rng.shuffle(joining)
    left = [(store.importing(), list(records)) for records in archives * 3]
    pins: list[Pin] = []
    outputs: list[Output] = []
    while joining or core.has_work or left:
        if joining and rng.random() < 0.4:
            core.add(joining.pop())
        if rng.random() < 0.15:
            core.cancel(100 + rng.randrange(12))
        if left and rng.random() < 0.5:
            incoming, records = rng.choice(left)
            incoming.take(records[:4])
            del records[:4]
            left = [one for one in left if one[1]]
        if rng.random() < 0.2:
            pins.append(store.pin(rng.choice(SALTS), PREFIX))
        if pins and rng.random() < 0.2:
            store.unpin([pins.pop(rng.randrange(len(pins)))])
        outputs += core.step()
        core.scheduler.check()
    store.unpin(pins)
    core.scheduler.check()
    assert {identity: tokens for identity, tokens in new_tokens(outputs).items() if identity < 100} == cold
    assert store.counts.imported > 0
    assert core.stats().num_evictions > 0
    assert core.stats().num_held_blocks == 0
    assert core.scheduler.tables.cache.num_evictable == core.stats().num_cached_blocks


def test_an_imported_prefix_is_used(
    checkpoint: Path, source: tuple[dict[int, list[int]], list[list[Record]]]
) -> None:
    """Not only there: the first request finds all of it, and says the same."""
    cold, archives = source
    core = build_core(checkpoint)
    incoming = store_of(core).importing()
    incoming.take(archives[0])
    assert incoming.count_reusable_tokens() == 60
    one = requests()[0]
    assert new_tokens(run_to_end(core, [one])) == {0: cold[0]}
    assert one.num_cached_tokens == 60
