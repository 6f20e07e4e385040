"""What enters and leaves the prefix cache, as events that routers follow. No torch here.

A block's hash names its whole path: salt, the tokens before it, its own. It is for telling blocks apart from
outside; the cache itself compares tokens.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from penstock.engine.prefix_cache import NO_BLOCK, Node, PrefixCache

HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class BlockStored:
    """A block can be found from now on."""

    block_hash: int
    parent_hash: int | None
    tokens: tuple[int, ...]
    is_salted: bool
    """True if only requests of one salt, or of one adapter, find it."""


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """A block is gone."""

    block_hash: int


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """Nothing is cached."""


KVEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KVEventLog:
    """Listens to a prefix cache; one thread owns both."""

    def __init__(self, cache: PrefixCache) -> None:
        """The cache is empty."""
        self._cache = cache
        self._hashes: dict[Node, int] = {}
        self._events: list[KVEvent] = []
        cache.listener = self

    def stored(self, node: Node) -> None:
        """See CacheListener."""
        self._events.append(self._told(node))

    def removed(self, node: Node) -> None:
        """See CacheListener."""
        self._events.append(BlockRemoved(self._hashes.pop(node)))

    def cleared(self) -> None:
        """See CacheListener."""
        self._hashes.clear()
        self._events = [AllBlocksCleared()]

    def take(self) -> list[KVEvent]:
        """What has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def whole(self) -> Iterator[KVEvent]:
        """Events that lead from nothing to the cache as it is, after all that were taken."""
        yield AllBlocksCleared()
        for _, node in self._cache.by_recency():
            yield self._told(node)

    def _told(self, node: Node) -> BlockStored:
        parent = node.parent
        assert parent is not None
        is_first = parent.block == NO_BLOCK
        salt = str(parent.key[0]) if is_first else ""
        above = None if is_first else self._hashes[parent]
        tokens = tuple(node.tokens)
        if node not in self._hashes:
            before = (
                salt.encode(errors="surrogatepass") if above is None else above.to_bytes(HASH_BYTES, "big")
            )
            digest = hashlib.blake2b(before + b"\0" + array("i", tokens).tobytes(), digest_size=HASH_BYTES)
            self._hashes[node] = int.from_bytes(digest.digest(), "big")
        return BlockStored(self._hashes[node], above, tokens, self._is_salted(node))

    def _is_salted(self, node: Node) -> bool:
        root = self._cache.path_to(node)[0].parent
        return root is not None and root.key != ("",)
