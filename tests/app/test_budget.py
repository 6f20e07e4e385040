"""Who may take how much memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop_turns import until
from penstock.app.budget import MIB, Budget, Charge, resident_bytes
from penstock.base.errors import ModelLoadError

LIMIT_S = 10


class Asked:
    """Notes who was asked to go."""

    def __init__(self) -> None:
        self.calls: list[Sequence[str]] = []

    def __call__(self, engines: Sequence[str]) -> None:
        self.calls.append(engines)


def lazy(num_bytes: int) -> Charge:
    return Charge(num_bytes, is_kept=False)


def kept(num_bytes: int) -> Charge:
    return Charge(num_bytes, is_kept=True)


async def test_without_a_limit_all_are_admitted() -> None:
    """And nobody is asked to go."""
    asked = Asked()
    budget = Budget(0, asked)
    for name in ("a", "b"):
        await budget.take(name, lazy(1 << 60), "huge", None)
    assert asked.calls == []


async def test_room_is_waited_for() -> None:
    """Those that may go are asked, and not any more once there is room."""
    asked = Asked()
    budget = Budget(100, asked)
    await budget.take("kept", kept(30), "", None)
    await budget.take("a", lazy(40), "", None)
    await budget.take("b", lazy(30), "", None)
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(budget.take("c", lazy(60), "", None))
        await until(lambda: len(asked.calls) == 1)
        budget.release("b")
        await until(lambda: len(asked.calls) == 2)
        assert not taking.done()
        budget.release("a")
    assert asked.calls == [["a", "b"], ["a"], ()]
    assert budget.holds("c")


async def test_what_never_fits_is_refused_at_once() -> None:
    """With the figures, and without anybody having to go."""
    asked = Asked()
    budget = Budget(100 * MIB, asked)
    await budget.take("kept", kept(60 * MIB), "", None)
    with pytest.raises(ModelLoadError, match=r"needs 50 MiB \(why\) beside 60 MiB of models .* allows 100;"):
        await budget.take("a", lazy(50 * MIB), "why", None)
    assert not budget.holds("a")
    assert asked.calls == [()]


async def test_waiting_for_room_has_an_end() -> None:
    """Afterwards nobody is asked to go any more, and nothing is charged."""
    asked = Asked()
    budget = Budget(100, asked)
    await budget.take("a", lazy(60), "", None)
    with pytest.raises(TimeoutError):
        await budget.take("b", lazy(60), "", 0.001)
    assert asked.calls == [["a"], ()]
    assert not budget.holds("b")


async def test_more_can_be_taken_in_place_of_less() -> None:
    """An engine's own charge does not stand in its way."""
    budget = Budget(100, Asked())
    await budget.take("a", lazy(60), "", None)
    await budget.take("a", lazy(100), "", None)
    assert budget.charged_bytes("a") == 100


async def test_what_is_really_held_counts() -> None:
    """If it is more than what was announced; a process that has ended holds nothing."""
    budget = Budget(0, Asked())
    await budget.take("a", Charge(1, is_kept=False, pid=os.getpid()), "", None)
    assert budget.charged_bytes("a") > MIB
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    assert resident_bytes(process.pid) == 0


async def test_turns_are_taken_one_after_the_other() -> None:
    """A turn that does not come in time is given up, and does not block the next."""
    budget = Budget(100, Asked())
    async with budget.turn(None):
        with pytest.raises(TimeoutError):
            async with budget.turn(0.001):
                pass
    async with asyncio.timeout(LIMIT_S), budget.turn(None):
        pass


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 120), st.booleans()), max_size=40))
def test_the_limit_holds_whatever_comes(events: list[tuple[int, int, bool]]) -> None:
    """However engines come and go: those admitted never take more together."""

    async def run() -> None:
        budget = Budget(100, Asked())
        held: dict[str, int] = {}
        for number, size, goes in events:
            name = str(number)
            if goes:
                budget.release(name)
                held.pop(name, None)
                continue
            try:
                await budget.take(name, lazy(size), "", 0)
                held[name] = size
            except (TimeoutError, ModelLoadError):
                assert size + sum(held[other] for other in held if other != name) > 100
            assert sum(held.values()) <= 100

    asyncio.run(run())
