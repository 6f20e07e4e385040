"""The prefix cache: computed KV blocks found again by the tokens that lead to them. No torch here.

A radix tree whose edges are whole blocks. A node is one full block; its key is the block's tokens, so
tokens are compared and no hash is trusted. The first edge of every path is its salt: what one tenant
computed is invisible to another, in answers and in timing.

A sequence locks the path from its salt to its last cached block, each node once. Hence a node has at least
as many locks as any child of it, and is released no earlier: of all unlocked nodes, in the order of their
release and the deeper ones of one release first, the foremost is a leaf, and the least recently used one.
Eviction is that: no clock, no heap, no search. A locked node is never evicted.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from penstock.engine.blocks import BlockPool

Key = tuple[int | str, ...]
"""The tokens of a block; of a root (salt,)."""
NO_BLOCK = -1  # of roots and of the node above them
LOCAL_SALT = "\0"
"""Begins the salts that mean something in this process only; what lies under them never leaves it."""


class Node:
    """One cached block below the block before it, or a root."""

    __slots__ = ("block", "children", "key", "num_locks", "parent")

    def __init__(self, key: Key, parent: Node | None, block: int = NO_BLOCK) -> None:
        self.key = key
        self.parent = parent
        self.block = block
        self.children: dict[Key, Node] = {}
        self.num_locks = 0

    @property
    def tokens(self) -> list[int]:
        """The tokens of the block."""
        return [token for token in self.key if isinstance(token, int)]


class CacheListener(Protocol):
    """Hears what becomes of the cached blocks."""

    def stored(self, node: Node) -> None:
        """A node is in the tree."""
        ...

    def removed(self, node: Node) -> None:
        """A node is no longer there; it has no children."""
        ...

    def cleared(self) -> None:
        """No node is there any more."""
        ...


class PrefixCache:
    """Owns the pool's cached blocks."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._top = Node((), None)
        self._unlocked: OrderedDict[Node, None] = OrderedDict()  # in order of release
        self.listener: CacheListener | None = None
        self.num_evictions = 0
        self.num_remaps = 0
        """Blocks computed twice, by sequences that ran together; one was kept."""

    @property
    def num_evictable(self) -> int:
        """Blocks that could be taken back now."""
        return len(self._unlocked)

    def match(self, salt: str, tokens: SequenceOf[int]) -> list[Node]:
        """The longest cached path along `tokens`, root left out; changes nothing.

        It ends before the last token, which is always left to compute: its logits give the next one.
        """
        size = self._pool.block_size
        path: list[Node] = []
        node = self._top.children.get((salt,))
        for start in range(0, (len(tokens) - 1) // size * size, size):
            node = node and node.children.get(tuple(tokens[start : start + size]))
            if node is None:
                break
            path.append(node)
        return path

    def lock(self, path: SequenceOf[Node]) -> None:
        """Keeps the nodes of a path from eviction, until :meth:`release`."""
        for node in path:
            if node.num_locks == 0:
                del self._unlocked[node]
            node.num_locks += 1

    def release(self, path: SequenceOf[Node]) -> None:
        """Takes one lock of each node of a path back."""
        for node in reversed(path):
            node.num_locks -= 1
            if node.num_locks == 0:
                self._unlocked[node] = None

    def insert(self, salt: str, path: list[Node], tokens: Key, block: int) -> int:
        """Prolongs `path`, locked by the caller, by a computed block of the caller's; says which to use.

        The block becomes the cache's. If another sequence has brought the same tokens before, its block
        stays and the caller's is freed: a block has one owner, and the tree one block per path.
        """
        parent = path[-1] if path else self._root(salt)
        node = parent.children.get(tokens)
        if node is None:
            self._pool.cache(block)
            node = parent.children[tokens] = Node(tokens, parent, block)
            node.num_locks = 1
            if self.listener is not None:
                self.listener.stored(node)
        else:
            self._pool.free([block])
            self.num_remaps += 1
            self.lock([node])
        path.append(node)
        return node.block

    def child(self, salt: str, parent: Node | None, tokens: Key) -> Node | None:
        """The cached block below `parent`, or below the root of `salt` where that is None."""
        above = self._top.children.get((salt,)) if parent is None else parent
        return above and above.children.get(tokens)

    def adopt(self, salt: str, parent: Node | None, tokens: Key, block: int) -> Node:
        """Takes over a computed block of the caller's that is not cached yet: unlocked, and the oldest.

        `parent` is cached, or None below the root of `salt`. Lock it to make it younger.
        """
        above = self._root(salt) if parent is None else parent
        assert tokens not in above.children, "a path has one block"
        self._pool.cache(block)
        node = above.children[tokens] = Node(tokens, above, block)
        self._unlocked[node] = None
        self._unlocked.move_to_end(node, last=False)
        if self.listener is not None:
            self.listener.stored(node)
        return node

    def holds(self, node: Node) -> bool:
        """True if a node that was cached once still is."""
        # Parents outlive their children, unless all is forgotten at once: then the root is gone.
        root = self.path_to(node)[0].parent
        assert node.parent is not None
        assert root is not None
        return node.parent.children.get(node.key) is node and self._top.children.get(root.key) is root

    def path_to(self, node: Node) -> list[Node]:
        """The nodes from below the root to `node`, cached or not."""
        path = [node]
        while (parent := path[-1].parent) is not None and parent.block != NO_BLOCK:
            path.append(parent)
        path.reverse()
        return path

    def by_recency(self) -> Iterator[tuple[str, Node]]:
        """All cached nodes with their salts, parents before children: those in use, then the youngest first.

        So as many of the first as one likes are a tree.
        """
        salts: dict[Node, str] = {}
        in_use = [node for root in self._top.children.values() for node in _below(root) if node.num_locks]
        for node in itertools.chain(in_use, reversed(self._unlocked)):
            parent = node.parent
            assert parent is not None
            salts[node] = str(parent.key[0]) if parent.block == NO_BLOCK else salts[parent]
            yield salts[node], node

    def evict(self, count: int) -> None:
        """Frees `count` blocks, least recently used first. The caller has checked `num_evictable`."""
        for _ in range(count):
            node, _ = self._unlocked.popitem(last=False)
            assert not node.children, "only leaves are evicted"
            self._pool.evict(node.block)
            self.num_evictions += 1
            if self.listener is not None:
                self.listener.removed(node)
            parent = _unlink(node)
            if parent.parent is self._top and not parent.children:
                _unlink(parent)

    def reset(self) -> None:
        """Forgets everything; the blocks are the caller's matter."""
        self._top.children.clear()
        self._unlocked.clear()
        if self.listener is not None:
            self.listener.cleared()

    def check(self, paths: SequenceOf[tuple[str, SequenceOf[Node]]]) -> list[int]:
        """Asserts the tree's invariants; `paths` are all locked ones with their salts. Gives its blocks."""
        locks: Counter[Node] = Counter()
        for salt, path in paths:
            parent = self._top.children.get((salt,))
            for node in path:
                assert parent is not None, "a locked path has no root"
                assert parent.children.get(node.key) is node, "a locked node is not in the tree"
                parent = node
            locks.update(path)
        roots = self._top.children.values()
        assert all(root.children for root in roots), "an empty root was kept"
        nodes = [node for root in roots for node in _below(root)]
        assert all(node.num_locks == locks[node] for node in nodes), "locks are miscounted"
        order = {node: place for place, node in enumerate(self._unlocked)}
        assert order.keys() == {node for node in nodes if not node.num_locks}, "the unlocked are miscounted"
        for node in order:
            assert all(order[child] < order[node] for child in node.children.values()), "a leaf is not first"
        return [node.block for node in nodes]

    def _root(self, salt: str) -> Node:
        key = (salt,)
        return self._top.children.setdefault(key, Node(key, self._top))


def _unlink(node: Node) -> Node:
    """Takes a node out of the tree; gives its parent."""
    assert node.parent is not None
    del node.parent.children[node.key]
    return node.parent


def _below(root: Node) -> Iterator[Node]:
    """All nodes below `root`; a loop, since a path may be longer than Python's stack."""
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()
