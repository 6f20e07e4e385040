"""The pool of KV blocks: who may write where. No torch here; the tensors belong to the attention backend.

Invariant: a block has exactly one owner, the free list, one sequence or the prefix cache;
free + held + cached = all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum


class Owner(IntEnum):
    """Whose a block is."""

    NOBODY = 0
    SEQUENCE = 1
    """One sequence, which alone reads it and writes to it."""
    CACHE = 2
    """The prefix cache; any sequence that locks it reads it, nobody writes to it."""


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each, handed out and taken back by number."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.reset()

    def reset(self) -> None:
        """Takes every block back, whoever has it."""
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._owners = bytearray(self.num_blocks)
        self.num_cached = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        """Blocks that belong to sequences."""
        return self.num_blocks - self.num_free - self.num_cached

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks needed to hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Gives `count` free blocks to a sequence. The caller has checked `num_free`."""
        assert 0 <= count <= len(self._free), f"{count} blocks asked for, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._owners[block] = Owner.SEQUENCE
        return taken

    def free(self, blocks: Iterable[int]) -> None:
        """Takes a sequence's blocks back. A block that no sequence holds is a defect."""
        for block in blocks:
            self._hand_over(block, Owner.SEQUENCE, Owner.NOBODY)
            self._free.append(block)

    def cache(self, block: int) -> None:
        """Makes a sequence's block the prefix cache's."""
        self._hand_over(block, Owner.SEQUENCE, Owner.CACHE)
        self.num_cached += 1

    def evict(self, block: int) -> None:
        """Takes a block of the prefix cache back."""
        self._hand_over(block, Owner.CACHE, Owner.NOBODY)
        self.num_cached -= 1
        self._free.append(block)

    def check(self, held: Sequence[int], cached: Sequence[int]) -> None:
        """Asserts conservation, given the blocks that sequences hold and those that the cache holds."""
        named = [*held, *cached, *self._free]
        assert len(named) == len(set(named)), "a block has two owners"
        assert all(self._owners[block] == Owner.SEQUENCE for block in held), "a table names a foreign block"
        assert all(self._owners[block] == Owner.CACHE for block in cached), "the cache names a foreign block"
        assert len(named) == self.num_blocks, (
            f"{len(held)} held + {len(cached)} cached + {self.num_free} free != {self.num_blocks}"
        )
        assert (self.num_held, self.num_cached) == (len(held), len(cached)), "a counter is wrong"

    def _hand_over(self, block: int, giver: Owner, taker: Owner) -> None:
        owner = Owner(self._owners[block])
        assert owner is giver, f"block {block} is {owner.name}'s, not {giver.name}'s"
        self._owners[block] = taker
