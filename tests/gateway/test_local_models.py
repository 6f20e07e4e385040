"""Who passes the gates of models that can sleep, who waits, and who is asked to go."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop_turns import until
from penstock.base.errors import (
    CapacityError,
    DeadlineExceededError,
    DrainingError,
    ModelLoadError,
    NotReadyError,
    QueueFullError,
)
from penstock.fleet.orders import Unload, Wake
from scripted_owner import Gates

LIMIT_S = 10


class Request:
    """One that passes the gate, or not, and then runs until it is let go."""

    def __init__(self, gates: Gates, model: str, timeout_s: float = math.inf) -> None:
        self._gates = gates
        self._model = model
        self._timeout_s = timeout_s
        self.is_inside = False
        self.let_go = asyncio.Event()

    async def run(self) -> None:
        async with self._gates.models.use(self._model, self._timeout_s):
            self.is_inside = True
            try:
                await self.let_go.wait()
            finally:
                self.is_inside = False


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_model_without_a_gate_is_not_waited_for() -> None:
    """Its requests pass, whatever the others do."""
    gates = Gates("a")
    async with gates.models.use("elsewhere", 0.0):
        assert "elsewhere" not in gates.models
        assert gates.models.is_open("elsewhere")
        assert not gates.models.is_open("a")
    assert not gates.owner.orders


async def test_all_that_wait_share_one_load() -> None:
    """However many come; they pass when the model is ready, and the next one without waiting."""
    gates = Gates("a", "b")
    requests = [Request(gates, "a") for _ in range(20)]
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        for request in requests:
            tasks.create_task(request.run())
        await turns()
        assert list(gates.owner.orders) == [Wake("a")]
        assert gates.models.phase("a") == "loading"
        assert gates.samples()["penstock_model_requests_waiting", "a"] == 20
        gates.load("a")
        await until(lambda: all(request.is_inside for request in requests))
        assert gates.models.is_open("a")
        assert gates.is_ready == {"a": True, "b": False}
        for request in requests:
            request.let_go.set()
    async with gates.models.use("a", 0.0):
        assert gates.owner.obeyed == [Wake("a")]
    samples = gates.samples()
    assert samples["penstock_model_loads_total", "a", "ready"] == 1
    assert samples["penstock_model_load_seconds_sum", "a"] == 2
    assert samples["penstock_model_requests_waiting", "a"] == 0
    assert samples["penstock_local_models", "ready"] == samples["penstock_local_models", "asleep"] == 1


async def test_a_failed_load_is_told_to_all_that_wait() -> None:
    """With the reason and when to come again; the next request tries again."""
    gates = Gates("a")
    async with asyncio.timeout(LIMIT_S):
        waiting = [asyncio.ensure_future(Request(gates, "a").run()) for _ in range(3)]
        await turns()
        gates.load("a", "no such file")
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, ModelLoadError)
            assert outcome.message == "the model 'a' could not be loaded: no such file"
            assert outcome.retry_after_s == 7
        assert (gates.models.phase("a"), gates.models.reason("a")) == ("failed", "no such file")
        assert not gates.models.can_be_had("a")
        assert gates.samples()["penstock_model_loads_total", "a", "failed"] == 1
        again = asyncio.ensure_future(gates.models.wake("a"))
        await turns()
        gates.load("a")
        await again
        assert gates.models.reason("a") == ""


async def test_a_load_that_found_no_room_is_no_fault_of_the_model() -> None:
    """503 not_ready, not model_load_failed."""
    gates = Gates("a")
    waiting = asyncio.ensure_future(gates.models.wake("a"))
    await turns()
    gates.load("a", "no room", lacks_room=True)
    with pytest.raises(NotReadyError, match="no room"):
        await waiting


async def test_waiting_is_bounded_in_time_and_number() -> None:
    """By the request's own time, by the setting, and by how many wait already."""
    gates = Gates("a", load_timeout_s=0.02, max_waiting=1)
    with pytest.raises(DeadlineExceededError, match=r"within the request's 0\.01 s"):
        await Request(gates, "a", 0.01).run()
    with pytest.raises(NotReadyError) as raised:
        await Request(gates, "a", 60.0).run()
    assert raised.value.retry_after_s
    first = asyncio.ensure_future(Request(gates, "a").run())
    await turns()
    with pytest.raises(QueueFullError):
        await Request(gates, "a").run()
    with pytest.raises(NotReadyError):
        await first
    assert gates.samples()["penstock_model_requests_waiting", "a"] == 0


async def test_a_client_that_leaves_stops_waiting() -> None:
    """The load goes on, and nobody's leaving keeps the model from being idle."""
    gates = Gates("a", "b", phase="asleep")
    leaving = asyncio.ensure_future(Request(gates, "a").run())
    await turns()
    gates.deliver()
    gates.owner.need_room(["a", "b"])
    gates.deliver()
    gates.owner.load("a")
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gates.deliver()
    assert gates.owner.obeyed == [Wake("a"), Unload("a", "room")]


async def test_who_leaves_just_as_the_model_is_ready_makes_room() -> None:
    """It was answered, never ran, and was the last one that the model was kept for."""
    gates = Gates("a")
    leaving = asyncio.ensure_future(Request(gates, "a").run())
    await turns()
    gates.owner.need_room(["a"])
    gates.load("a")
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert list(gates.owner.orders) == [Unload("a", "room")]


async def test_the_least_recently_used_idle_model_makes_room() -> None:
    """One per request for room; a busy one goes when it becomes idle, one that is not named stays."""
    gates = Gates("a", "b", "c", "d", phase="ready")
    for model in ("b", "a", "d", "c"):
        async with gates.models.use(model, 1.0):
            await asyncio.sleep(0.001)  # the loop's clock must move between two uses
    busy = Request(gates, "b")
    running = asyncio.ensure_future(busy.run())
    await turns()
    gates.owner.need_room(["a", "b", "c"])
    gates.deliver()
    assert gates.owner.obeyed == [Unload("a", "room")]
    gates.unloaded("a")
    gates.owner.need_room(["b"])
    gates.deliver()
    assert len(gates.owner.obeyed) == 1
    busy.let_go.set()
    await running
    gates.deliver()
    assert gates.owner.obeyed[1:] == [Unload("b", "room")]
    assert gates.samples()["penstock_model_unloads_total", "b", "room"] == 1
    assert [gates.models.phase(model) for model in "abcd"] == ["asleep", "unloading", "ready", "ready"]


async def test_room_that_is_not_needed_any_more_is_not_made() -> None:
    """The last word counts, unless it was said before our own was heard."""
    gates = Gates("a", "b", phase="ready")
    busy = Request(gates, "a")
    running = asyncio.ensure_future(busy.run())
    await turns()
    gates.owner.need_room(["a"])
    gates.owner.need_room([])
    gates.deliver()
    busy.let_go.set()
    await running
    assert not gates.owner.orders
    gates.owner.need_room(["a", "b"])
    gates.owner.need_room(["a", "b"])
    gates.deliver()
    assert len(gates.owner.obeyed) == 1


async def test_an_old_state_does_not_open_a_gate() -> None:
    """A model that is being unloaded is not ready, though that was said just before."""
    gates = Gates("a")
    waking = asyncio.ensure_future(gates.models.wake("a"))
    await turns()
    gates.load("a")
    await waking
    gates.owner.crash("a")
    gates.owner.load("a")
    late = list(gates.owner.states)
    gates.owner.states.clear()
    sleeping = asyncio.ensure_future(gates.models.sleep("a"))
    await turns()
    for state in late:
        gates.models.apply(state)
    assert gates.models.phase("a") == "unloading"
    gates.unloaded("a")
    await sleeping
    assert gates.models.phase("a") == "asleep"


async def test_an_idle_model_is_unloaded_after_its_time() -> None:
    """Counted from the end of the last request, or from being ready; not if it is loaded at start."""
    gates = Gates("a", "kept", on_first_use=["a"], phase="ready", idle_s=0.01)
    request = Request(gates, "a")
    running = asyncio.ensure_future(request.run())
    async with asyncio.timeout(LIMIT_S):
        await asyncio.sleep(0.03)
        assert not gates.owner.orders
        request.let_go.set()
        await running
        await until(lambda: bool(gates.owner.orders))
        gates.unloaded("a")
        assert gates.owner.obeyed == [Unload("a", "idle")]
        waking = asyncio.ensure_future(gates.models.wake("a"))
        await turns()
        gates.load("a")
        await waking
        await until(lambda: bool(gates.owner.orders))
        assert list(gates.owner.orders) == [Unload("a", "idle")]


async def test_sleep_waits_for_running_requests_and_holds_new_ones() -> None:
    """Which wake the model again."""
    gates = Gates("a", phase="ready")
    old, new = Request(gates, "a"), Request(gates, "a")
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(old.run())
        await until(lambda: old.is_inside)
        sleeping = tasks.create_task(gates.models.sleep("a"))
        await turns()
        assert not gates.models.is_open("a")
        tasks.create_task(new.run())
        await turns()
        assert not new.is_inside
        assert not gates.owner.orders
        old.let_go.set()
        await turns()
        assert list(gates.owner.orders) == [Unload("a", "asked"), Wake("a")]
        await sleeping
        gates.unloaded("a")
        gates.load("a")
        await until(lambda: new.is_inside)
        new.let_go.set()


async def test_sleep_gives_up_where_requests_do_not_end() -> None:
    """The model stays, and those held back pass."""
    gates = Gates("a", phase="ready", load_timeout_s=0.01)
    running = Request(gates, "a")
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(running.run())
        await until(lambda: running.is_inside)
        with pytest.raises(CapacityError, match="still run"):
            await gates.models.sleep("a")
        assert gates.models.is_open("a")
        running.let_go.set()


async def test_not_all_the_world_can_wait_for_a_model_to_sleep() -> None:
    """As with those that wait for it to wake."""
    gates = Gates("a", phase="ready", max_waiting=2)
    running = Request(gates, "a")
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(running.run())
        await until(lambda: running.is_inside)
        asked = [tasks.create_task(gates.models.sleep("a")) for _ in range(2)]
        await turns()
        with pytest.raises(QueueFullError):
            await gates.models.sleep("a")
        running.let_go.set()
        await turns()
        gates.unloaded("a")
        await asyncio.gather(*asked)
        assert gates.owner.obeyed == [Unload("a", "asked")]


async def test_sleeping_twice_is_sleeping() -> None:
    """No order for what is asleep already."""
    gates = Gates("a")
    await gates.models.sleep("a")
    assert not gates.owner.orders


async def test_a_stop_lets_nobody_wait() -> None:
    """Neither who waits nor who comes."""
    gates = Gates("a")
    waiting = asyncio.ensure_future(Request(gates, "a").run())
    await turns()
    gates.models.close()
    for task in (waiting, asyncio.ensure_future(Request(gates, "a").run())):
        with pytest.raises(DrainingError):
            await task


EVENTS = st.tuples(
    st.sampled_from(
        ["request", "let go", "leave", "sleep", "obey", "tell", "load", "fail", "unloaded", "crash", "room"]
    ),
    st.integers(0, 1),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_nobody_is_cut_and_nobody_waits_for_ever(events: list[tuple[str, int]]) -> None:
    """No order ends an engine that a request uses, however messages cross; in the end all are answered."""

    async def run() -> None:
        requests: dict[str, list[Request]] = {"a": [], "b": []}

        def check_unload(model: str) -> None:
            assert not any(request.is_inside for request in requests[model])

        gates = Gates("a", "b", on_unload=check_unload)
        tasks: list[asyncio.Future[None]] = []
        for kind, number in events:
            model = "ab"[number]
            if kind == "request":
                requests[model].append(Request(gates, model))
                tasks.append(asyncio.ensure_future(requests[model][-1].run()))
            elif kind == "let go":
                for request in requests[model][:1]:
                    request.let_go.set()
            elif kind == "leave" and tasks:
                tasks[-1].cancel()
            elif kind == "sleep":
                tasks.append(asyncio.ensure_future(gates.models.sleep(model)))
            elif kind == "obey" and gates.owner.orders:
                gates.owner.obey()
            elif kind == "tell" and gates.owner.states:
                gates.models.apply(gates.owner.states.popleft())
            elif kind == "load":
                gates.owner.load(model)
            elif kind == "fail":
                gates.owner.load(model, "broken")
            elif kind == "unloaded":
                gates.owner.unloaded(model)
            elif kind == "crash":
                gates.owner.crash(model)
            elif kind == "room":
                gates.owner.need_room(["a", "b"])
            await turns(number * 3)
        for _ in range(50):
            for request in (*requests["a"], *requests["b"]):
                request.let_go.set()
            for model in "ab":
                gates.unloaded(model)
                gates.load(model)
            await turns(3)
        assert all(task.done() for task in tasks), gates.models.__dict__
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(
            outcome is None or isinstance(outcome, (ModelLoadError, asyncio.CancelledError))
            for outcome in outcomes
        )
        gates.deliver()
        for model in "ab":
            assert gates.samples()["penstock_model_requests_waiting", model] == 0
            assert gates.models.phase(model) == gates.owner.phases[model]

    asyncio.run(run())
