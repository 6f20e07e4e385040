"""The block pool: every block has one owner, and none is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.blocks import BlockPool


@given(st.integers(1, 40), st.lists(st.integers(0, 8), max_size=60), st.randoms(use_true_random=False))
def test_blocks_are_conserved_through_any_allocations(num_blocks, sizes, rng) -> None:  # type: ignore[no-untyped-def]
    """Whatever changes hands in any order, free + held + cached = all, and no block has two owners."""
    pool = BlockPool(num_blocks, 4)
    held: list[int] = []
    cached: list[int] = []
    for size in sizes:
        chance = rng.random()
        if size <= pool.num_free and chance < 0.5:
            held += pool.allocate(size)
        elif held and chance < 0.7:
            pool.free([held.pop(rng.randrange(len(held)))])
        elif held:
            cached.append(held.pop(rng.randrange(len(held))))
            pool.cache(cached[-1])
        elif cached:
            pool.evict(cached.pop(rng.randrange(len(cached))))
        pool.check(held, cached)
    pool.reset()
    assert sorted(pool.allocate(num_blocks)) == list(range(num_blocks))


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_block_is_begun_by_its_first_token(tokens: int, blocks: int) -> None:
    """Rounding up, exact at block edges."""
    assert BlockPool(8, 4).blocks_for(tokens) == blocks


def test_asking_for_more_than_is_free_is_a_defect() -> None:
    """The scheduler looks before it takes."""
    pool = BlockPool(2, 4)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="2 blocks asked for, 1 free"):
        pool.allocate(2)


@pytest.mark.parametrize("act", [lambda pool: pool.free([0]), lambda pool: pool.cache(0)])
def test_only_a_sequence_gives_a_block_away(act: Callable[[BlockPool], None]) -> None:
    """Freed twice, or freed while the cache has it, a block would have two owners."""
    pool = BlockPool(1, 4)
    with pytest.raises(AssertionError, match="block 0 is NOBODY's"):
        act(pool)
    pool.cache(*pool.allocate(1))
    with pytest.raises(AssertionError, match="block 0 is CACHE's"):
        act(pool)
    pool.evict(0)
    with pytest.raises(AssertionError, match="block 0 is NOBODY's, not CACHE's"):
        pool.evict(0)


def test_the_check_finds_each_kind_of_damage() -> None:
    """Otherwise the property tests prove nothing."""
    pool = BlockPool(6, 4)
    held = pool.allocate(2)
    cached = pool.allocate(1)
    pool.cache(*cached)
    pool.check(held, cached)
    for wrong_held, wrong_cached, complaint in (
        (held * 2, cached, "two owners"),
        (held, held, "two owners"),
        ([*held, 5], cached, "two owners"),  # a free one
        (held + cached, [], "foreign block"),
        (held[:1], cached + held[1:], "foreign block"),
        (held[:1], cached, "1 held"),
        (held, [], "0 cached"),
    ):
        with pytest.raises(AssertionError, match=complaint):
            pool.check(wrong_held, wrong_cached)
