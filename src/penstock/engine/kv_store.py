"""KV that outlives its requests: cached blocks out of an engine, and archives of them into one.

What comes in is inserted into the tree that requests are matched with, and what is reported is what that tree
says afterwards. All methods run on the engine's thread, or where no such thread runs, between two steps; each
takes a bounded batch, so that steps go on in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.engine.block_tables import BlockTables, Pin
from penstock.engine.kv_archive import Block, PageShape, Record, root_bytes
from penstock.engine.kv_fingerprint import Fingerprint
from penstock.engine.kv_pages import KVPages
from penstock.engine.prefix_cache import LOCAL_SALT, Node

# Of one batch: a few milliseconds of copying.
BATCH_BYTES = 4 << 20
BATCH_BLOCKS = 256
# Of the pool's blocks, what one import may evict to make room.
EVICTED_SHARE = 0.5


@dataclass(slots=True)
class KVCounts:
    """Blocks that crossed the border so far. Written by the engine's thread, read by others."""

    restored: int = 0
    imported: int = 0
    exported: int = 0


class KVStore:
    """The door between one engine's cached blocks and archives."""

    def __init__(self, tables: BlockTables, pages: KVPages, fingerprint: Fingerprint) -> None:
        """`pages` are those that the tables' blocks number."""
        self.tables = tables
        self.pages = pages
        self.shape = PageShape(fingerprint, tables.pool.block_size, pages.block_bytes)
        self.counts = KVCounts()
        self.batch_blocks = max(1, min(BATCH_BLOCKS, BATCH_BYTES // self.shape.record_bytes))
        """How many blocks to move between two steps."""

    def read(self, nodes: SequenceOf[Node]) -> NDArray[np.uint8]:
        """The pages of cached nodes, which are held by the caller: uint8 (len(nodes), block_bytes)."""
        return self.pages.read([node.block for node in nodes])

    def pin(self, salt: str, tokens: SequenceOf[int]) -> Pin:
        """Keeps what a prompt of `tokens` would find now, until :meth:`unpin`."""
        return self.tables.pin(salt, tokens)

    def unpin(self, pins: Iterable[Pin]) -> None:
        """Lets eviction have what was pinned."""
        for pin in pins:
            self.tables.unpin(pin)

    def read_pinned(self, pin: Pin, start: int, end: int) -> NDArray[np.uint8] | None:
        """Pages [start, end) of a pinned path; None if sequences needed its blocks."""
        if not self.tables.holds(pin):
            return None
        pages = self.read(pin.path[start:end])
        self.counts.exported += len(pages)
        return pages

    def youngest(self, max_bytes: int) -> list[tuple[str, Node]]:
        """Cached nodes with their salts whose records take at most `max_bytes`, parents before children.

        Those in use first, then the last used. What is cached for this process alone is left out.
        """
        chosen: list[tuple[str, Node]] = []
        salts: set[str] = set()
        for salt, node in self.tables.cache.by_recency():
            if salt.startswith(LOCAL_SALT):
                continue
            max_bytes -= self.shape.record_bytes + (0 if salt in salts else root_bytes(salt))
            if max_bytes < 0:
                break
            salts.add(salt)
            chosen.append((salt, node))
        return chosen

    def restoring(self) -> Incoming:
        """For a snapshot, which has its youngest blocks first: each is placed behind all that is there."""
        return Incoming(self, 0, is_recent=False)

    def importing(self) -> Incoming:
        """For what is about to be used: it is placed as the youngest, and older blocks make room for it."""
        share = int(self.tables.pool.num_blocks * EVICTED_SHARE)
        return Incoming(self, share, is_recent=True)


class Incoming:
    """One archive on its way into the cache. It holds nothing between two calls, so it may be dropped."""

    def __init__(self, store: KVStore, max_evictions: int, *, is_recent: bool) -> None:
        """Evicts up to `max_evictions` blocks that nobody uses."""
        self._store = store
        self._cache = store.tables.cache
        self._pool = store.tables.pool
        self._evictions_left = max_evictions
        self._is_recent = is_recent
        self._num_records = 0
        self._salts: dict[int, str] = {}
        self._nodes: dict[int, Node] = {}
        self._leaves: dict[int, Node] = {}
        self._path: list[Node] = []  # locked, within a call
        self.num_placed = 0
        """Blocks that were not there before."""
        self.num_known = 0
        """Blocks that were there already."""
        self.problem: str | None = None
        """Why blocks were dropped, if some were."""

    @property
    def is_full(self) -> bool:
        """True if there is no room for another block."""
        return not self._pool.num_free and not (self._evictions_left and self._cache.num_evictable)

    def take(self, records: SequenceOf[Record]) -> None:
        """Inserts the archive's next records; those that cannot be, and what is below them, are dropped."""
        try:
            for record in records:
                if isinstance(record, Block):
                    self._place(self._num_records, record)
                elif record.salt.startswith(LOCAL_SALT):
                    self._drop("a salt means something in another process only")
                else:
                    self._salts[self._num_records] = record.salt
                self._num_records += 1
        finally:
            self._go_to(None)

    def count_reusable_tokens(self) -> int:
        """Tokens of the archive that prompts which begin with them find now, by the very search they make."""
        found: set[Node] = set()
        for leaf in self._leaves.values():
            path = self._cache.path_to(leaf)
            root = path[0].parent
            assert root is not None
            tokens = [token for node in path for token in node.tokens]
            found.update(self._cache.match(str(root.key[0]), [*tokens, 0]))  # one more: the last is computed
        return len(found) * self._pool.block_size

    def _place(self, index: int, record: Block) -> None:
        salt, parent = self._salts.get(record.parent, ""), self._nodes.get(record.parent)
        if parent is None and record.parent not in self._salts:
            return self._drop("what some blocks follow was not taken")
        if self._is_recent and not self._go_to(parent):
            return self._drop("requests needed the room while blocks came in")
        node = self._cache.child(salt, parent, record.tokens)
        if node is not None:
            self.num_known += 1
        elif self.is_full:
            return self._drop("there is no more room in the KV pool")
        else:
            node = self._cache.adopt(salt, parent, record.tokens, self._fill(record))
            self._count()
        if self._is_recent:
            self._cache.lock([node])
            self._path.append(node)
        self._nodes[index] = self._leaves[index] = node
        self._leaves.pop(record.parent, None)
        return None

    def _fill(self, record: Block) -> int:
        """A block with the record's page, a sequence's for the moment."""
        if not self._pool.num_free:
            self._cache.evict(1)
            self._evictions_left -= 1
        (block,) = self._pool.allocate(1)
        try:
            self._store.pages.write(block, record.page)
        except BaseException:
            self._pool.free([block])
            raise
        return block

    def _count(self) -> None:
        self.num_placed += 1
        if self._is_recent:
            self._store.counts.imported += 1
        else:
            self._store.counts.restored += 1

    def _go_to(self, node: Node | None) -> bool:
        """Locks the path to `node`, which ends where that is None, instead of the one before it.

        False, and nothing is locked, if it is no longer cached.
        """
        if (self._path[-1] if self._path else None) is node:
            return True
        self._cache.release(self._path)
        self._path = []
        if node is None:
            return True
        if not self._cache.holds(node):
            return False
        self._path = self._cache.path_to(node)
        self._cache.lock(self._path)
        return True

    def _drop(self, why: str) -> None:
        self.problem = self.problem or why
