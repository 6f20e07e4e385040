"""What comes into the cache is found there, in its right place among what is; nothing is lost on the way."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_shelf import SIZE, Shelf, random_shelf
from penstock.engine.kv_archive import ArchiveReader
from penstock.engine.kv_store import EVICTED_SHARE


def ages(shelf: Shelf) -> list[tuple[str, str]]:
    """Unlocked paths from the youngest to the oldest."""
    cache = shelf.tables.cache
    return [
        (salt, "".join(chr(token) for one in cache.path_to(node) for token in one.tokens))
        for salt, node in cache.by_recency()
    ]


@pytest.mark.parametrize("is_import", [False, True])
@given(seed=st.integers(0, 200))
def test_a_random_tree_comes_back_whole(is_import: bool, seed: int) -> None:
    """Every path with its pages, under its salt; a second time nothing new comes and nothing is lost."""
    shelf, other = random_shelf(seed), Shelf(48)
    for _ in range(2):
        assert other.bring(shelf.archive(), is_import=is_import).problem is None
        assert other.texts() == shelf.texts()
    assert other.pool.num_cached == shelf.pool.num_cached
    assert other.tables.is_idle


@given(st.integers(0, 200))
def test_a_snapshot_keeps_the_order_of_use(seed: int) -> None:
    """What is evicted first there is evicted first here."""
    shelf, other = random_shelf(seed), Shelf(48)
    other.bring(shelf.archive())
    assert ages(other) == ages(shelf)
    while shelf.tables.cache.num_evictable:
        for one in (shelf, other):
            one.tables.cache.evict(1)
            one.check()
        assert other.texts() == shelf.texts()


@given(st.integers(0, 200), st.integers(1, 20))
def test_in_a_small_pool_the_youngest_come_back(seed: int, num_blocks: int) -> None:
    """With all that they follow; and nothing that was there before is evicted for them."""
    shelf, other = random_shelf(seed), Shelf(num_blocks + 1)
    other.compute("zz")
    other.bring(shelf.archive())
    assert ages(other) == [("", "zz"), *ages(shelf)[:num_blocks]]


@given(st.integers(0, 200), st.integers(0, 3000))
def test_the_budget_is_kept(seed: int, max_bytes: int) -> None:
    """The youngest that fit, parents before children, locked ones first of all."""
    shelf = random_shelf(seed)
    shelf.begin("xyxy", "busy")
    nodes = shelf.store.youngest(max_bytes)
    assert nodes == list(shelf.tables.cache.by_recency())[: len(nodes)]
    assert [salt for salt, _ in nodes[:2]] == ["busy"] * min(len(nodes), 2)
    seen = set()
    for _, node in nodes:
        assert node.parent in seen or node.parent.key in [("",), ("one",), ("two",), ("busy",)]
        seen.add(node)
    assert len(nodes) * shelf.store.shape.record_bytes <= max_bytes


def test_what_is_in_use_is_saved_too() -> None:
    """An engine that is stopped in the middle of an answer loses the answer, not the KV."""
    shelf, other = Shelf(), Shelf()
    shelf.compute("aabb")
    shelf.begin("aacc")
    other.bring(shelf.archive())
    assert (other.found("aabb"), other.found("aacc")) == (4, 4)


def test_salts_share_nothing_and_local_ones_stay() -> None:
    """Neither out nor in."""
    shelf, other = Shelf(), Shelf()
    for salt in ("", "tenant", "\0adapter"):
        shelf.compute("aabb", salt)
    assert len(shelf.store.youngest(1 << 20)) == 4
    other.bring(shelf.archive())
    assert {salt for salt, _ in other.texts()} == {"", "tenant"}
    smuggled = Shelf()
    incoming = smuggled.store.importing()
    records = ArchiveReader(shelf.store.shape).feed(shelf.archive())
    roots = [index for index, record in enumerate(records) if getattr(record, "salt", None) == "tenant"]
    records[roots[0]] = type(records[roots[0]])("\0tenant")
    incoming.take(records)
    assert incoming.num_placed == 2
    assert incoming.problem == "a salt means something in another process only"
    assert {salt for salt, _ in smuggled.texts()} == {""}
    smuggled.check()


def test_an_import_is_the_youngest() -> None:
    """It is about to be used; a snapshot is not."""
    shelf = Shelf()
    shelf.compute("aabb")
    for is_import, expected in ((True, ["aa", "aabb", "zz"]), (False, ["zz", "aa", "aabb"])):
        other = Shelf()
        other.compute("zz")
        other.bring(shelf.archive(), is_import=is_import)
        assert [text for _, text in ages(other)] == expected


def test_an_import_evicts_a_share_and_nothing_in_use() -> None:
    """What does not fit is dropped from the end, and the reason is told."""
    shelf, other = Shelf(64), Shelf(16)
    shelf.compute("ab" * 30)
    busy = other.begin("yyyy")
    other.compute("zz" * 14)
    assert other.pool.num_free == 0
    reader, incoming = ArchiveReader(shelf.store.shape), other.store.importing()
    incoming.take(reader.feed(shelf.archive()))
    other.check()
    assert incoming.num_placed == int(16 * EVICTED_SHARE) == other.found("ab" * 30) // SIZE
    assert incoming.count_reusable_tokens() == incoming.num_placed * SIZE
    assert incoming.problem == "there is no more room in the KV pool"
    assert other.found("yyyy") == 4
    other.end(busy)
    other.check()


def test_what_was_evicted_in_between_is_not_counted() -> None:
    """Between two batches requests may take the room; what follows what they took is dropped."""
    shelf, other = Shelf(), Shelf(8)
    shelf.compute("abcdefgh")
    reader, incoming = ArchiveReader(shelf.store.shape), other.store.importing()
    records = reader.feed(shelf.archive())
    incoming.take(records[:3])
    assert incoming.count_reusable_tokens() == 4
    other.compute("zz" * 7)  # all but one block: "ab" stays
    other.check()
    incoming.take(records[3:])
    other.check()
    assert incoming.problem == "requests needed the room while blocks came in"
    assert (incoming.num_placed, incoming.num_known) == (2, 0)
    assert incoming.count_reusable_tokens() == other.found("abcdefgh") == 2


def test_a_pool_begun_anew_in_between_is_no_trap() -> None:
    """The engine takes every block back after a defect; the nodes of before mean nothing then."""
    shelf, other = Shelf(), Shelf()
    shelf.compute("abcdefgh")
    incoming = other.store.importing()
    records = ArchiveReader(shelf.store.shape).feed(shelf.archive())
    incoming.take(records[:3])
    other.tables.reset()
    incoming.take(records[3:])
    other.check()
    assert (incoming.count_reusable_tokens(), other.pool.num_cached) == (0, 0)


@given(st.integers(0, 100), st.integers(1, 12))
def test_two_imports_at_once_beside_traffic(seed: int, num_blocks: int) -> None:
    """Batches of both in any order, prompts that run and end in between: no block and no lock is lost."""
    rng = random.Random(seed)
    sources = [random_shelf(seed), random_shelf(seed + 1)]
    other = Shelf(num_blocks + 6)
    left = [ArchiveReader(one.store.shape).feed(one.archive()) for one in sources]
    incoming = [other.store.importing() for _ in sources]
    while any(left):
        index = rng.randrange(2)
        count = rng.randint(1, 4)
        incoming[index].take(left[index][:count])
        del left[index][:count]
        other.check()
        if other.running and rng.random() < 0.5:
            other.end(other.running[0])
        elif not other.running:
            other.begin("".join(rng.choice("ab") for _ in range(SIZE * rng.randint(1, 3))))
        other.check()
    for one in incoming:
        assert one.count_reusable_tokens() <= (one.num_placed + one.num_known) * SIZE
    for one in tuple(other.running):
        other.end(one)
    assert other.texts()  # each with its pages checked
    assert other.tables.is_idle


def test_a_page_that_cannot_be_written_takes_no_block() -> None:
    """The defect is told; the pool stays whole."""
    shelf, other = Shelf(), Shelf()
    shelf.compute("abcd")
    records = ArchiveReader(shelf.store.shape).feed(shelf.archive())
    other.pages._layer_bytes += 1
    with pytest.raises(RuntimeError):
        other.store.importing().take(records)
    other.check()
    assert other.pool.num_free == other.pool.num_blocks


def test_what_is_pinned_is_read_until_its_blocks_are_needed() -> None:
    """Then there is nothing more to read, and nothing wrong was read."""
    shelf = Shelf(8)
    shelf.compute("aabbcc")
    pin = shelf.store.pin("", [*map(ord, "aabbcc!")])
    first = shelf.store.read_pinned(pin, 0, 2)
    assert first is not None
    assert [page.tobytes() for page in first] == [shelf.page_of("aa", ""), shelf.page_of("aabb", "")]
    shelf.end(shelf.begin("zz" * 7))
    assert shelf.store.read_pinned(pin, 2, 3) is None
    shelf.store.unpin([pin])
    shelf.check()
    assert shelf.store.counts.exported == 2
