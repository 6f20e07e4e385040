"""Whose a position's block is, from admission to release. No torch needed."""

from __future__ import annotations

import pytest

from penstock.engine.block_tables import BlockTables
from penstock.engine.blocks import BlockPool
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence

SIZE = 4


def sequence(tokens: list[int], salt: str = "") -> Sequence:
    """A prompt."""
    return Sequence(0, tokens, SamplingParams(max_tokens=8), cache_salt=salt)


def tables_of(num_blocks: int, *, is_caching: bool = True) -> BlockTables:
    """Tables over an empty pool."""
    return BlockTables(BlockPool(num_blocks, SIZE), is_caching=is_caching)


def compute(tables: BlockTables, one: Sequence, up_to: int) -> None:
    """A step has computed the positions below `up_to`."""
    one.num_computed = up_to
    tables.publish(one)


def leave_behind(tables: BlockTables, tokens: list[int]) -> None:
    """Computes a prompt and ends it."""
    one = sequence(tokens)
    assert tables.admit(one, reserve=0)
    compute(tables, one, len(tokens))
    tables.release(one)


def test_a_block_is_published_as_soon_as_it_is_full() -> None:
    """Not before: the next step writes to it."""
    tables, one = tables_of(8), sequence(list(range(10)))
    assert tables.admit(one, reserve=0)
    for computed, published in ((3, 0), (4, 1), (7, 1), (10, 2)):
        compute(tables, one, computed)
        assert len(one.path) == tables.pool.num_cached == published
        tables.check([one])
    one.tokens += [10, 11]
    assert tables.grow(one)
    compute(tables, one, 12)  # the last two were decoded
    assert len(one.path) == 3


def test_what_was_found_is_shared_and_the_rest_its_own() -> None:
    """Same numbers in both tables as far as the tokens agree, then different ones."""
    tables = tables_of(8)
    first, second = sequence([1] * 8 + [2] * 4), sequence([1] * 8 + [3] * 4)
    assert tables.admit(first, reserve=0)
    compute(tables, first, 12)
    assert tables.admit(second, reserve=0)
    assert (second.num_computed, second.num_cached_tokens) == (8, 8)
    assert first.block_table[:2] == second.block_table[:2]
    assert first.block_table[2] != second.block_table[2]
    tables.check([first, second])
    assert (tables.num_prompt_tokens, tables.num_hit_tokens) == (24, 8)


def test_no_more_is_evicted_than_is_needed() -> None:
    """The rest may be a hit for the next one."""
    tables = tables_of(8)
    leave_behind(tables, [1] * 24)
    assert (tables.pool.num_free, tables.num_available) == (2, 8)
    one = sequence([2] * 12)
    assert tables.admit(one, reserve=0)
    assert tables.cache.num_evictions == 1
    tables.check([one])


def test_what_was_just_found_is_not_evicted_for_the_rest() -> None:
    """Though it is the oldest: it is locked before room is made."""
    tables = tables_of(4)
    leave_behind(tables, [1] * 8)
    leave_behind(tables, [2] * 8)
    one = sequence([1] * 8 + [3] * 4)
    assert tables.admit(one, reserve=1)
    assert one.num_cached_tokens == 8
    tables.check([one])


@pytest.mark.parametrize("reserve", [0, 1])
def test_a_hit_is_not_counted_as_room(reserve: int) -> None:
    """Its blocks are evictable until it is admitted; a refusal changes nothing."""
    tables = tables_of(4)
    leave_behind(tables, [1] * 8)
    one = sequence([1] * 8 + [3] * (12 - 4 * reserve))
    assert not tables.admit(one, reserve=reserve)
    assert (one.block_table, one.path, one.num_cached_tokens) == ([], [], None)
    assert (tables.num_available, tables.cache.num_evictions) == (4, 0)
    tables.check([one])


def test_growing_beyond_the_pool_is_refused_and_changes_nothing() -> None:
    """The scheduler decides who has to go."""
    tables, one = tables_of(2), sequence([1] * 8)
    assert tables.admit(one, reserve=0)
    compute(tables, one, 8)
    one.tokens.append(1)
    assert not tables.grow(one)  # both cached blocks are its own and locked
    assert len(one.block_table) == 2
    tables.check([one])


def test_switched_off_nothing_is_kept() -> None:
    """Every block is free again, and the same prompt is computed anew."""
    tables = tables_of(4, is_caching=False)
    leave_behind(tables, [1] * 8)
    assert (tables.pool.num_free, tables.num_hit_tokens) == (4, 0)
    one = sequence([1] * 8)
    assert tables.admit(one, reserve=0)
    assert one.num_cached_tokens == 0


def test_idle_means_that_nobody_has_anything() -> None:
    """Cached blocks are nobody's; a private block or a lock is somebody's."""
    tables, one = tables_of(4), sequence([1] * 6)
    assert tables.is_idle
    assert tables.admit(one, reserve=0)
    assert not tables.is_idle
    compute(tables, one, 6)
    tables.release(one)
    assert tables.is_idle
    tables.cache.lock(tables.cache.match(one.cache_root, [1] * 5))
    assert not tables.is_idle
    tables.reset()
    assert tables.is_idle
    assert tables.pool.num_free == 4


def test_the_check_finds_each_kind_of_damage() -> None:
    """Otherwise the property tests prove nothing."""
    tables, one = tables_of(4), sequence([1] * 6)
    assert tables.admit(one, reserve=0)
    compute(tables, one, 6)
    tables.check([one])
    one.block_table.reverse()
    with pytest.raises(AssertionError):
        tables.check([one])
    one.block_table.reverse()
    one.tokens[0] = 2
    with pytest.raises(AssertionError):
        tables.check([one])
    one.tokens[0] = 1
    one.num_computed = 3
    with pytest.raises(AssertionError):
        tables.check([one])


def leave_path(tables: BlockTables, tokens: list[int]) -> list[int]:
    """Computes a prompt and ends it; a prompt that would find all of it."""
    leave_behind(tables, tokens)
    return [*tokens, 0]


def test_a_pin_keeps_its_path_until_it_is_given_back() -> None:
    """An idle engine stays idle: a pin is nobody's work."""
    tables = tables_of(8)
    prompt = leave_path(tables, [1] * 8)
    pin, again = tables.pin("", prompt), tables.pin("", prompt)
    assert [len(one.path) for one in (pin, again)] == [2, 2]
    assert (tables.cache.num_evictable, tables.is_idle) == (0, True)
    tables.check([])
    tables.unpin(pin)
    tables.unpin(pin)  # twice does nothing
    tables.check([])
    assert (tables.holds(pin), tables.holds(again), tables.cache.num_evictable) == (False, True, 0)
    tables.unpin(again)
    tables.check([])
    assert tables.cache.num_evictable == 2


def test_a_pin_gives_way_to_a_new_sequence_that_needs_its_blocks() -> None:
    """Not before the unpinned ones are used up."""
    tables = tables_of(6)
    pin = tables.pin("", leave_path(tables, [1] * 12))
    leave_behind(tables, [2] * 12)
    small, large = sequence([3] * 12), sequence([4] * 12)
    assert tables.admit(small, reserve=0)
    assert tables.holds(pin)
    assert tables.admit(large, reserve=0)
    assert not tables.holds(pin)
    tables.unpin(pin)
    tables.check([small, large])


def test_a_pin_gives_way_to_a_decode_that_needs_its_blocks() -> None:
    """Rather than one running sequence being preempted for it."""
    tables, one = tables_of(3), sequence([2] * 4)
    pin = tables.pin("", leave_path(tables, [1] * 8))
    assert tables.admit(one, reserve=0)
    assert tables.holds(pin)
    compute(tables, one, 4)
    one.tokens.append(2)
    assert tables.grow(one)
    assert not tables.holds(pin)
    tables.check([one])


def test_a_pin_that_would_not_help_is_kept() -> None:
    """Who needs more than it has waits anyway."""
    tables, one = tables_of(4), sequence([2] * 20)
    pin = tables.pin("", leave_path(tables, [1] * 8))
    assert not tables.admit(one, reserve=0)
    assert tables.holds(pin)
    assert tables.admit(sequence([2] * 4), reserve=0)


def test_a_new_pool_knows_no_old_pins() -> None:
    """To give one back then changes nothing."""
    tables = tables_of(4)
    pin = tables.pin("", leave_path(tables, [1] * 8))
    tables.reset()
    leave_behind(tables, [2] * 8)
    tables.unpin(pin)
    assert not tables.holds(pin)
    tables.check([])


def test_to_pin_what_is_not_there_is_to_pin_nothing() -> None:
    """And costs nobody anything."""
    tables = tables_of(4)
    pin = tables.pin("", [1] * 9)
    assert (pin.path, tables.is_idle) == ((), True)
    tables.unpin(pin)
    tables.check([])
