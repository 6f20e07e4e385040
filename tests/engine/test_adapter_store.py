"""Names and their adapters: what may be loaded when, and what an unloaded one leaves behind."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.base.errors import CapacityError, CheckpointError, InvalidRequestError, ModelNotFoundError
from penstock.engine.adapter import Adapter
from penstock.engine.adapter_store import AdapterStore

LIMIT_S = 30.0


def read(folder: Path) -> str:
    """Folders called bad hold no adapter, and for those called large there is no memory."""
    if folder.name == "bad":
        raise CheckpointError("it is bad")
    if folder.name == "large":
        raise MemoryError
    return f"weights of {folder.name}"


def store(max_loras: int = 2, reader: Callable[[Path], object] = read) -> AdapterStore:
    """An empty one."""
    return AdapterStore("base", reader, max_loras, is_open=True)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """One that exists."""
    (tmp_path / "good").mkdir()
    return str(tmp_path / "good")


async def test_a_name_leads_to_what_was_loaded(folder: str) -> None:
    """Until it is unloaded; a second loading is another adapter."""
    adapters = store()
    first = await adapters.load("a", folder)
    assert (first.name, first.path, first.weights) == ("a", folder, "weights of good")
    assert adapters.get("a") is first
    assert adapters.loaded == (first,)
    adapters.unload("a")
    assert adapters.get("a") is None
    second = await adapters.load("a", folder)
    assert second.number != first.number
    with pytest.raises(ModelNotFoundError, match="no adapter 'b'"):
        adapters.unload("b")


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", "\x00", "\ud800", "\u2028", "base"])
async def test_a_name_must_be_usable(name: str, folder: str) -> None:
    """In logs, in URLs, and beside the base model's."""
    adapters = store()
    with pytest.raises(InvalidRequestError) as caught:
        await adapters.load(name, folder)
    assert caught.value.param == "lora_name"
    assert (await adapters.load("x" * 256, folder)).name == "x" * 256


@pytest.mark.parametrize(
    "path", ["", "/nonesuch", "\x00", "x" * 5000, "~nobody-of-that-name/x", "\ud800", __file__]
)
async def test_a_path_must_be_a_folder(path: str) -> None:
    """Whatever it is, it is the client's fault."""
    with pytest.raises(InvalidRequestError, match="no folder") as caught:
        await store().load("a", path)
    assert caught.value.param == "lora_path"


async def test_a_failed_loading_leaves_nothing(tmp_path: Path, folder: str) -> None:
    """The name is free again, and so is the place."""
    adapters = store(max_loras=1)
    for name, error in (("bad", InvalidRequestError), ("large", CapacityError)):
        (tmp_path / name).mkdir()
        with pytest.raises(error):
            await adapters.load("a", str(tmp_path / name))
    assert adapters.loaded == ()
    assert await adapters.load("a", folder)


async def test_a_name_is_given_once(folder: str) -> None:
    """Unless it is to be replaced; then the old one lives as long as somebody uses it."""
    adapters = store(max_loras=1)
    first = await adapters.load("a", folder)
    with pytest.raises(InvalidRequestError, match="loaded already"):
        await adapters.load("a", folder)
    second = await adapters.load("a", folder, is_replacing=True)
    assert adapters.get("a") is second is not first
    assert adapters.num_leaving == 1
    with pytest.raises(CapacityError, match="1 wait for their last requests"):
        await adapters.load("a", folder, is_replacing=True)
    del first
    gc.collect()
    assert adapters.num_leaving == 0
    assert await adapters.load("a", folder, is_replacing=True)


async def test_the_bound_counts_what_is_being_loaded_and_what_leaves(folder: str) -> None:
    """Memory is taken by all of them."""
    begun, allowed = threading.Event(), threading.Event()

    def slow(folder: Path) -> str:
        begun.set()
        assert allowed.wait(LIMIT_S)
        return read(folder)

    adapters = store(1, slow)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(adapters.load("a", folder))
        assert await asyncio.to_thread(begun.wait, LIMIT_S)
        with pytest.raises(InvalidRequestError, match="'a' is being loaded"):
            await adapters.load("a", folder, is_replacing=True)
        with pytest.raises(CapacityError, match="1 are being loaded"):
            await adapters.load("b", folder)
        allowed.set()
    used = first.result()
    adapters.unload("a")
    with pytest.raises(CapacityError, match="1 wait for their last requests"):
        await adapters.load("b", folder)
    del used, first
    gc.collect()
    assert await adapters.load("b", folder)
    with pytest.raises(InvalidRequestError, match="1 adapters are loaded and max_loras is 1"):
        await adapters.load("c", folder)
    with pytest.raises(InvalidRequestError, match="takes no adapters"):
        await store(max_loras=0).load("a", folder)


def test_what_is_preloaded_must_load(tmp_path: Path, folder: str) -> None:
    """Or the engine does not start."""
    adapters = store()
    adapters.preload({"a": folder, "b": folder})
    assert [one.name for one in adapters.loaded] == ["a", "b"]
    (tmp_path / "bad").mkdir()
    for names in (
        {"a": str(tmp_path / "bad")},
        {"base": folder},
        {"a": "/nonesuch"},
        dict.fromkeys("abc", folder),
    ):
        with pytest.raises(CheckpointError, match=r"lora_modules '[a-z]+': "):
            store().preload(names)


class _Traffic(RuleBasedStateMachine):
    """Loading, replacing, unloading and use in any order, beside a plain account of it."""

    def __init__(self) -> None:
        super().__init__()
        self.store = store(max_loras=3)
        self.named: dict[str, int] = {}
        self.used: list[Adapter] = []

    @rule(name=st.sampled_from("abcd"), is_replacing=st.booleans())
    def load(self, name: str, is_replacing: bool) -> None:
        """Given exactly when there is room and the name is free, or is to be replaced."""
        num_alive = len(set(self.named.values()) | {one.number for one in self.used})
        is_free = name not in self.named or is_replacing
        fits = num_alive < 3 + (name in self.named)
        try:
            number = asyncio.run(self.store.load(name, "/", is_replacing=is_replacing)).number
        except (InvalidRequestError, CapacityError):
            assert not (is_free and fits)
        else:
            assert is_free
            assert fits
            self.named[name] = number

    @rule(name=st.sampled_from("abcd"))
    def unload(self, name: str) -> None:
        """The name is free at once."""
        if self.named.pop(name, None) is None:
            with pytest.raises(ModelNotFoundError):
                self.store.unload(name)
        else:
            self.store.unload(name)

    @rule(name=st.sampled_from("abcd"))
    def use(self, name: str) -> None:
        """A request begins."""
        if (adapter := self.store.get(name)) is not None:
            self.used.append(adapter)

    @rule()
    def end(self) -> None:
        """The oldest request ends."""
        if self.used:
            self.used.pop(0)

    @invariant()
    def agree(self) -> None:
        """Names, numbers and what is left of the unloaded."""
        assert {one.name: one.number for one in self.store.loaded} == self.named
        assert self.store.num_leaving == len({one.number for one in self.used} - set(self.named.values()))


TestTraffic = _Traffic.TestCase
TestTraffic.settings = settings(max_examples=30, stateful_step_count=30)
