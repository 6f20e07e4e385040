"""Which sequence's positions lie in which block: sequences, pool and prefix cache joined. No torch here.

    block_table:  | cached | cached | cached | private | private |     sequence.path = the cached nodes
    owner:        |     the prefix cache     |   this sequence   |
    positions:    0             computed ────────────▲  written by the next step

A private block becomes the cache's as soon as all its positions are computed, whether by prefill or by
decode, so that sequences which run at the same time share it too. Steps write to private blocks only.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from penstock.engine.blocks import BlockPool
from penstock.engine.prefix_cache import Node, PrefixCache
from penstock.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """A cached path that is being read out; it stays until sequences would have to do without its blocks."""

    salt: str
    path: tuple[Node, ...]


class BlockTables:
    """Gives blocks to sequences and takes them back; not thread-safe."""

    def __init__(self, pool: BlockPool, *, is_caching: bool) -> None:
        """Without `is_caching` nothing is kept and nothing found."""
        self.pool = pool
        self.cache = PrefixCache(pool)
        self.is_caching = is_caching
        self._pins: list[Pin] = []
        self.num_prompt_tokens = 0
        """Prompt tokens of the sequences admitted so far, each once."""
        self.num_hit_tokens = 0
        """Those of them that were in the cache."""

    @property
    def num_available(self) -> int:
        """Blocks that sequences could get now, unlocked cached ones included."""
        return self.pool.num_free + self.cache.num_evictable

    @property
    def is_idle(self) -> bool:
        """True if no sequence holds a block and none locks a node; O(1) where nothing is pinned."""
        num_locked = self.pool.num_cached - self.cache.num_evictable
        return self.pool.num_held == 0 and num_locked == self._num_pinned

    def admit(self, sequence: Sequence, reserve: int) -> bool:
        """Gives a sequence blocks for all its tokens, cached ones where they are found.

        False, and nothing has changed, if that would leave fewer than `reserve` blocks available.
        """
        path = self.cache.match(sequence.cache_root, sequence.tokens) if self.is_caching else []
        del path[sequence.num_shareable // self.pool.block_size :]
        fresh = self.pool.blocks_for(len(sequence.tokens)) - len(path)
        # What was found is no longer to be had once it is locked.
        missing = fresh + sum(not node.num_locks for node in path) + reserve - self.num_available
        if missing > 0:
            return self._give_up_pins(missing) and self.admit(sequence, reserve)
        self.cache.lock(path)  # first: what was found must not be evicted to make room for the rest
        sequence.path = path
        sequence.block_table = [node.block for node in path] + self._take(fresh)
        sequence.num_computed = len(path) * self.pool.block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
            self.num_prompt_tokens += sequence.num_prompt_tokens
            self.num_hit_tokens += sequence.num_computed
        return True

    def grow(self, sequence: Sequence, extra: int = 0) -> bool:
        """Gives a sequence blocks for all its tokens and `extra` more; False, and nothing changed, if too few
        are left.
        """
        missing = self.pool.blocks_for(len(sequence.tokens) + extra) - len(sequence.block_table)
        if missing <= 0:  # at all but one in block_size decodes
            return True
        if missing > self.num_available:
            return self._give_up_pins(missing - self.num_available) and self.grow(sequence, extra)
        sequence.block_table += self._take(missing)
        return True

    def publish(self, sequence: Sequence) -> None:
        """Gives the blocks that were computed to their end to the cache; the table may change its numbers."""
        if not self.is_caching:
            return
        size = self.pool.block_size
        for index in range(len(sequence.path), sequence.num_computed // size):
            tokens = tuple(sequence.tokens[index * size : (index + 1) * size])
            sequence.block_table[index] = self.cache.insert(
                sequence.cache_root, sequence.path, tokens, sequence.block_table[index]
            )

    def release(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks back; cached ones stay cached until their place is needed."""
        self.cache.release(sequence.path)
        self.pool.free(sequence.block_table[len(sequence.path) :])
        sequence.path, sequence.block_table = [], []
        sequence.num_computed = 0

    def pin(self, salt: str, tokens: SequenceOf[int]) -> Pin:
        """Keeps what a prompt of `tokens` would find now; see Pin. Give it back with :meth:`unpin`."""
        pin = Pin(salt, tuple(self.cache.match(salt, tokens)))
        self.cache.lock(pin.path)
        self._pins.append(pin)
        return pin

    def holds(self, pin: Pin) -> bool:
        """False once the pin was given back or lost: its blocks may hold something else."""
        return pin in self._pins

    def unpin(self, pin: Pin) -> None:
        """Lets eviction have the path; does nothing if the pin was lost."""
        if self.holds(pin):
            self._pins.remove(pin)
            self.cache.release(pin.path)

    def forget(self) -> None:
        """Evicts everything that no sequence has locked."""
        self.cache.evict(self.cache.num_evictable)

    def reset(self) -> None:
        """Begins anew with every block free. No sequence may have a block table."""
        self._pins.clear()
        self.cache.reset()
        self.pool.reset()

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Asserts that blocks are conserved, that the tree is whole and that every table is right."""
        sequences = list(sequences)
        size = self.pool.block_size
        held: list[int] = []
        for sequence in sequences:
            path, table = sequence.path, sequence.block_table
            assert table[: len(path)] == [node.block for node in path]
            assert [token for node in path for token in node.key] == sequence.tokens[: len(path) * size]
            assert len(path) * size <= sequence.num_computed <= len(table) * size
            held += table[len(path) :]
        locked: list[tuple[str, SequenceOf[Node]]] = [(one.cache_root, one.path) for one in sequences]
        locked += [(pin.salt, pin.path) for pin in self._pins]
        self.pool.check(held, self.cache.check(locked))

    @property
    def _num_pinned(self) -> int:
        return len({node for pin in self._pins for node in pin.path})

    def _give_up_pins(self, count: int) -> bool:
        """Gives every pin up if that could make `count` blocks more available; False if it could not."""
        if self._num_pinned < count:
            return False
        for pin in tuple(self._pins):
            self.unpin(pin)
        return True

    def _take(self, count: int) -> list[int]:
        self.cache.evict(max(count - self.pool.num_free, 0))
        return self.pool.allocate(count)
