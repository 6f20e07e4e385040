"""The pool of KV blocks: who may write where. No torch here; the tensors belong to the attention backend.

Invariant: a block is either free or held by exactly one sequence; free + held = all.
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each, handed out and taken back by number."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_held = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks needed to hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks out of the pool. The caller has checked `num_free`."""
        assert 0 <= count <= len(self._free), f"{count} blocks asked for, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._is_held[block] = 1
        return taken

    def free(self, blocks: Iterable[int]) -> None:
        """Gives blocks back. A block that is not held is a defect."""
        for block in blocks:
            assert self._is_held[block], f"block {block} freed twice"
            self._is_held[block] = 0
            self._free.append(block)

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Asserts conservation: `tables` are all block tables in use; none shares a block, none is lost."""
        held = [block for table in tables for block in table]
        assert len(held) == len(set(held)), "a block has two owners"
        assert all(self._is_held[block] for block in held), "a table names a free block"
        assert len(held) + len(self._free) == self.num_blocks, (
            f"{len(held)} held + {len(self._free)} free != {self.num_blocks}"
        )
