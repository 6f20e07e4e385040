"""The block pool: every block has one owner, and none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.blocks import BlockPool


@given(st.integers(1, 40), st.lists(st.integers(0, 8), max_size=60), st.randoms(use_true_random=False))
def test_blocks_are_conserved_through_any_allocations(num_blocks, sizes, rng) -> None:  # type: ignore[no-untyped-def]
    """Handing out and taking back in any order keeps free + held = all, and no block has two owners."""
    pool = BlockPool(num_blocks, 4)
    tables: list[list[int]] = []
    for size in sizes:
        if size <= pool.num_free and rng.random() < 0.7:
            tables.append(pool.allocate(size))
        elif tables:
            pool.free(tables.pop(rng.randrange(len(tables))))
        pool.check(tables)
    for table in tables:
        pool.free(table)
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


def test_freeing_a_block_twice_is_a_defect() -> None:
    """It would give one block to two sequences."""
    pool = BlockPool(2, 4)
    table = pool.allocate(1)
    pool.free(table)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(table)


def test_the_check_finds_each_kind_of_damage() -> None:
    """Otherwise the property tests prove nothing."""
    pool = BlockPool(4, 4)
    table = pool.allocate(2)
    with pytest.raises(AssertionError, match="two owners"):
        pool.check([table, table])
    with pytest.raises(AssertionError, match="free block"):
        pool.check([table, [3]])
    with pytest.raises(AssertionError, match="1 held"):
        pool.check([table[:1]])
