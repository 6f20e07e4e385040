"""The table of a stream's legal order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.protocol.stream import CHOICE, STREAM, Event, IllegalOrderError, State, StreamOrder


def reachable(table: dict[State, dict[Event, State]], start: State) -> set[State]:
    """States that some sequence of events leads to."""
    seen, todo = {start}, [start]
    while todo:
        for following in table[todo.pop()].values():
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return seen


def test_every_state_is_in_a_table_and_can_be_reached() -> None:
    """No dead entries. That a stream's choices have finished is no event of its own."""
    assert set(CHOICE) | set(STREAM) == set(State)
    assert reachable(CHOICE, State.START) == set(CHOICE)
    assert reachable(STREAM, State.OPEN) | reachable(STREAM, State.FINISHED) == set(STREAM)


def test_there_are_two_ends_and_every_state_leads_to_one() -> None:
    """Done and failed; nothing gets stuck between."""
    ends = {state for state in STREAM if state.is_terminal}
    assert ends == {State.DONE, State.FAILED}
    assert all(reachable(STREAM, state) & ends for state in STREAM)
    assert all(State.FINISHED in reachable(CHOICE, state) for state in CHOICE)


def test_an_error_may_come_anywhere_before_the_end() -> None:
    """A failure knows no manners, but nothing follows an end."""
    for state, following in STREAM.items():
        assert (Event.ERROR in following) is not state.is_terminal


def test_done_needs_a_finish_and_comes_after_the_usage() -> None:
    """A stream that was cut never looks complete."""
    before_done = {state for state, following in STREAM.items() if Event.DONE in following}
    assert before_done == {State.FINISHED, State.ACCOUNTED}
    assert [state for state, following in STREAM.items() if Event.USAGE in following] == [State.FINISHED]


@pytest.mark.parametrize(
    "events",
    [
        "role content content finish usage done",
        "role finish done",
        "content finish done",
        "finish done",
        "role content error",
        "error",
        "role content finish usage error",
    ],
)
def test_legal_streams_reach_an_end(events: str) -> None:
    """Chat, text completion, and failures at any point."""
    order = StreamOrder()
    for name in events.split():
        assert not order.state.is_terminal
        assert order.advance(Event(name)) is order.state
    assert order.state.is_terminal


@pytest.mark.parametrize(
    "events",
    ["done", "usage", "role role", "content role", "role done", "role content done", "finish content",
     "finish finish", "finish usage usage", "finish done done", "finish done error", "error error",
     "error done", "role content usage"],
)  # fmt: skip
def test_illegal_streams_are_stopped_at_the_last_event(events: str) -> None:
    """The state stays what it was."""
    *legal, last = map(Event, events.split())
    order = StreamOrder()
    for event in legal:
        order.advance(event)
    state = order.state
    with pytest.raises(IllegalOrderError, match=f"{last.value} may not follow in state"):
        order.advance(last)
    assert order.state is state


def test_choices_run_side_by_side_and_the_stream_ends_with_the_last() -> None:
    """Each has its own order; usage and the end belong to all."""
    order = StreamOrder([True, True])
    for event, choice in ((Event.ROLE, 1), (Event.CONTENT, 1), (Event.ROLE, 0), (Event.FINISH, 1)):
        assert order.advance(event, choice) is State.OPEN
    for event, choice in ((Event.ROLE, 0), (Event.CONTENT, 1), (Event.USAGE, 0), (Event.DONE, 0)):
        with pytest.raises(IllegalOrderError):
            order.advance(event, choice)
    assert order.advance(Event.FINISH, 0) is State.FINISHED
    assert order.advance(Event.USAGE) is State.ACCOUNTED
    assert order.advance(Event.DONE) is State.DONE


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_any_walk_has_at_most_one_end_and_one_role(walk: list[Event]) -> None:
    """Whatever is tried, what was accepted is a legal stream."""
    order, accepted = StreamOrder(), []
    for event in walk:
        try:
            order.advance(event)
        except IllegalOrderError:
            continue
        accepted.append(event)
    ends = [event for event in accepted if event in (Event.DONE, Event.ERROR)]
    assert len(ends) == order.state.is_terminal
    assert accepted.count(Event.ROLE) <= 1
    assert accepted.count(Event.FINISH) <= 1
    assert not ends or accepted[-1] is ends[0]
    if Event.DONE in accepted:
        assert Event.FINISH in accepted
    if Event.ROLE in accepted:
        assert accepted[0] is Event.ROLE
