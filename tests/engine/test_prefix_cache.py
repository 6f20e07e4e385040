"""The prefix cache: found by tokens, evicted by age, never while locked."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.blocks import BlockPool
from penstock.engine.prefix_cache import Node, PrefixCache

SIZE = 2


class Desk:
    """A cache over a pool of `num_blocks` blocks of two tokens, and the paths that are locked."""

    def __init__(self, num_blocks: int = 8) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.cache = PrefixCache(self.pool)
        self.locked: list[tuple[str, list[Node]]] = []

    def compute(self, tokens: str, salt: str = "") -> list[Node]:
        """What a sequence does: it locks what is there, computes the rest and publishes it."""
        ids = [ord(letter) for letter in tokens]
        path = self.cache.match(salt, [*ids, 0])
        self.cache.lock(path)
        for start in range(len(path) * SIZE, len(ids), SIZE):
            (block,) = self.pool.allocate(1)
            self.cache.insert(salt, path, tuple(ids[start : start + SIZE]), block)
        self.locked.append((salt, path))
        return path

    def release(self, path: list[Node]) -> None:
        """A sequence ends."""
        (index,) = [i for i, (_, other) in enumerate(self.locked) if other is path]
        del self.locked[index]
        self.cache.release(path)

    def found(self, tokens: str, salt: str = "") -> int:
        """How many of the tokens are found."""
        return SIZE * len(self.cache.match(salt, [ord(letter) for letter in tokens]))

    def check(self) -> None:
        """Asserts everything that can be asserted; no sequence holds a private block here."""
        self.pool.check([], self.cache.check(self.locked))


def test_a_prefix_is_found_by_whole_blocks() -> None:
    """As far as the tokens agree, and no further."""
    desk = Desk()
    desk.release(desk.compute("abcdef"))
    assert desk.found("abcdefgh") == 6
    assert desk.found("abcdxx") == 4
    assert desk.found("abcxef") == 2
    assert desk.found("xbcdef") == 0
    assert desk.found("cdefgh") == 0  # the same tokens elsewhere have other keys and values


@pytest.mark.parametrize(("prompt", "found"), [("abcd", 2), ("abcde", 4), ("ab", 0), ("a", 0)])
def test_a_full_hit_leaves_a_token_to_compute(prompt: str, found: int) -> None:
    """Its logits give the next token; a cached block has none."""
    desk = Desk()
    desk.release(desk.compute("abcd"))
    assert desk.found(prompt) == found


def test_salts_share_nothing() -> None:
    """One tenant's prompt is no hit for another, and takes blocks of its own."""
    desk = Desk()
    ours, theirs = desk.compute("abcd", "ours"), desk.compute("abcd", "theirs")
    desk.check()
    assert not {node.block for node in ours} & {node.block for node in theirs}
    assert desk.found("abcde") == 0
    assert desk.found("abcde", "ours") == 4


def test_the_same_block_brought_twice_is_kept_once() -> None:
    """Two sequences that ran together: the second is told to use the first one's, its own is freed."""
    desk = Desk()
    first = desk.compute("ab")
    (mine,) = desk.pool.allocate(1)
    path: list[Node] = []
    assert desk.cache.insert("", path, (ord("a"), ord("b")), mine) == first[0].block != mine
    desk.locked.append(("", path))
    desk.check()
    assert path == first
    assert first[0].num_locks == 2
    assert desk.cache.num_remaps == 1
    assert desk.pool.num_cached == 1


def test_the_least_recently_used_leaf_goes_first() -> None:
    """A path shrinks from its end; to be used again makes it young, its beginning included."""
    desk = Desk()
    desk.release(desk.compute("abcd"))
    desk.release(desk.compute("abxy"))
    desk.release(desk.compute("zz"))
    assert desk.cache.num_evictable == 4
    desk.cache.evict(1)
    desk.check()
    assert (desk.found("abcde"), desk.found("abxy!"), desk.found("zz!")) == (2, 4, 2)
    desk.release(desk.compute("abxy"))
    desk.cache.evict(2)
    desk.check()
    assert (desk.found("abxy!"), desk.found("zz!")) == (2, 0)
    assert desk.cache.num_evictions == 3


def test_what_is_locked_is_not_evicted() -> None:
    """Not even a leaf that is older than everything else."""
    desk = Desk()
    path = desk.compute("abcd")
    desk.release(desk.compute("abxy"))
    assert desk.cache.num_evictable == 1
    desk.cache.evict(1)
    with pytest.raises(KeyError):
        desk.cache.evict(1)
    assert desk.found("abcd!") == 4
    desk.release(path)
    desk.cache.evict(2)
    desk.check()
    assert desk.pool.num_free == desk.pool.num_blocks


def test_matching_changes_nothing() -> None:
    """A queued prompt that is looked up at every step makes nothing younger."""
    desk = Desk()
    desk.release(desk.compute("ab"))
    desk.release(desk.compute("xy"))
    assert desk.found("ab!") == 2
    desk.cache.evict(1)
    assert (desk.found("ab!"), desk.found("xy!")) == (0, 2)


def test_a_long_path_needs_no_stack() -> None:
    """A conversation of thousands of blocks, checked and evicted without recursion."""
    desk = Desk(5000)
    desk.release(desk.compute("ab" * 5000))
    desk.check()
    desk.cache.evict(5000)
    desk.check()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: setattr(path[0], "num_locks", 5), "miscounted"),
        (lambda path: path[0].children.clear(), "not in the tree"),
        (lambda path: setattr(path[1], "block", path[0].block), "two owners"),
    ],
)
def test_the_check_finds_each_kind_of_damage(damage, complaint: str) -> None:  # type: ignore[no-untyped-def]
    """Otherwise the property tests prove nothing."""
    desk = Desk()
    path = desk.compute("abcd")
    damage(path)
    with pytest.raises(AssertionError, match=complaint):
        desk.check()


class Model:
    """The same rules written the slow way: a set of prefixes with the time of their last use."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.clock = 0

    def use(self, tokens: str) -> None:
        """A release: every prefix of `tokens` was used now."""
        self.clock += 1
        self.used |= {tokens[:end]: self.clock for end in range(SIZE, len(tokens) + 1, SIZE)}

    def evict(self, locked: set[str]) -> None:
        """Drops the unlocked leaf whose last use is oldest."""
        there = self.used.keys() | locked
        inner = {text[:end] for text in there for end in range(SIZE, len(text), SIZE)}
        del self.used[min(self.used.keys() - inner - locked, key=self.used.__getitem__)]


def prefixes(running: list[tuple[str, list[Node]]]) -> set[str]:
    """What running sequences have locked."""
    return {text[:end] for text, _ in running for end in range(SIZE, len(text) + 1, SIZE)}


@given(st.integers(0, 10_000))
def test_eviction_agrees_with_a_slow_model(seed: int) -> None:
    """Random texts over two letters, random ends: the same prefixes are left, always."""
    rng = random.Random(seed)
    desk, model = Desk(24), Model()
    running: list[tuple[str, list[Node]]] = []
    for _ in range(60):
        if rng.random() < 0.5 and len(running) < 3:
            text = "".join(rng.choice("ab") for _ in range(SIZE * rng.randint(1, 4)))
            while desk.pool.num_free < len(text) // SIZE:
                desk.cache.evict(1)
                model.evict(prefixes(running))
            running.append((text, desk.compute(text)))
        elif running:
            text, path = running.pop(rng.randrange(len(running)))
            desk.release(path)
            model.use(text)
        desk.check()
        there = model.used.keys() | prefixes(running)
        assert desk.pool.num_cached == len(there)
        assert all(desk.found(text + "!") == len(text) for text in there)


def test_an_adopted_block_is_found_and_evicted_first() -> None:
    """It is as if it had been there before everything else; to lock it makes it young."""
    desk = Desk()
    desk.release(desk.compute("ab"))
    parent = None
    for text in ("xx", "yy"):
        (block,) = desk.pool.allocate(1)
        parent = desk.cache.adopt("", parent, tuple(map(ord, text)), block)
        desk.check()
    assert desk.found("xxyy!") == 4
    assert desk.cache.child("", None, tuple(map(ord, "xx"))) is parent.parent
    assert desk.cache.child("other", None, tuple(map(ord, "xx"))) is None
    desk.cache.evict(1)
    assert (desk.found("xxyy!"), desk.found("ab!")) == (2, 2)
    path = desk.cache.match("", [*map(ord, "xx!")])
    desk.cache.lock(path)
    desk.cache.release(path)
    desk.cache.evict(1)
    assert (desk.found("xx!"), desk.found("ab!")) == (2, 0)
    desk.check()


def test_a_node_is_held_until_it_is_evicted_or_all_is_forgotten() -> None:
    """Also if something else with the same tokens has come since."""
    desk = Desk()
    path = desk.compute("abcd")
    desk.release(path)
    first, second = path
    assert [desk.cache.holds(node) for node in path] == [True, True]
    assert desk.cache.path_to(second) == path
    desk.cache.evict(1)
    assert [desk.cache.holds(node) for node in path] == [True, False]
    desk.release(desk.compute("abcd"))
    assert not desk.cache.holds(second)
    desk.cache.evict(2)
    desk.release(desk.compute("abcd"))
    assert not desk.cache.holds(first)
    (last, _) = desk.cache.match("", [*map(ord, "abcd!")])
    desk.cache.reset()
    assert not desk.cache.holds(last)


@given(st.integers(0, 1000))
def test_by_recency_is_the_order_of_eviction_backwards(seed: int) -> None:
    """Parents before children at every length, and what is locked first."""
    rng = random.Random(seed)
    desk = Desk(24)
    for _ in range(rng.randint(1, 6)):
        desk.release(
            desk.compute("".join(rng.choice("ab") for _ in range(SIZE * rng.randint(1, 3))), rng.choice("xy"))
        )
    desk.compute("aaaa", "x")
    order = [node for _, node in desk.cache.by_recency()]
    assert len(order) == len(set(order)) == desk.pool.num_cached
    assert set(order[:2]) == {node for node in order if node.num_locks}
    for node in reversed(order[2:]):
        assert desk.cache.holds(node)
        desk.cache.evict(1)
        assert not desk.cache.holds(node)
    for salt, node in desk.cache.by_recency():
        assert desk.cache.path_to(node)[0].parent.key == (salt,)
