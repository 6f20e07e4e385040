"""The legal order of a streamed answer, as two transition tables.

Each choice, by itself:

    start ── role ──▶ open ── finish ──▶ finished
      │                │ ▲                   ▲
      │             content                  │
      └──────────────── finish ──────────────┘

The stream as a whole:

    open ── all choices finished ──▶ finished ── usage ──▶ accounted
      │                                  │                     │
      │                                done                  done
      │                                  ▼                     ▼
      └────── error, from anywhere ──▶ failed                 done

A text completion has no role: its first event is content or finish. `done` and `failed` are the two terminal
states: a stream reaches exactly one of them, once, and nothing follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Event(Enum):
    """What one event of a stream tells."""

    ROLE = "role"
    CONTENT = "content"
    FINISH = "finish"
    USAGE = "usage"
    DONE = "done"
    ERROR = "error"


class State(Enum):
    """How far a choice, or the stream, is."""

    START = "start"
    OPEN = "open"
    FINISHED = "finished"
    ACCOUNTED = "accounted"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """True if nothing may follow."""
        return self in (State.DONE, State.FAILED)


CHOICE: dict[State, dict[Event, State]] = {
    State.START: {Event.ROLE: State.OPEN, Event.CONTENT: State.OPEN, Event.FINISH: State.FINISHED},
    State.OPEN: {Event.CONTENT: State.OPEN, Event.FINISH: State.FINISHED},
    State.FINISHED: {},
}
STREAM: dict[State, dict[Event, State]] = {
    State.OPEN: {Event.ERROR: State.FAILED},
    State.FINISHED: {Event.USAGE: State.ACCOUNTED, Event.DONE: State.DONE, Event.ERROR: State.FAILED},
    State.ACCOUNTED: {Event.DONE: State.DONE, Event.ERROR: State.FAILED},
    State.DONE: {},
    State.FAILED: {},
}


class IllegalOrderError(ValueError):
    """An event where the tables do not allow it."""


class StreamOrder:
    """Follows one stream of one or several choices through the tables."""

    def __init__(self, are_open: Sequence[bool] = (True,)) -> None:
        """`are_open`: by choice, whether its events are still to come."""
        self._choices = [State.START if is_open else State.FINISHED for is_open in are_open]
        self._num_open = sum(are_open)
        self.state = State.OPEN if self._num_open else State.FINISHED
        """Of the stream as a whole."""

    def advance(self, event: Event, choice: int = 0) -> State:
        """Takes one event, of `choice` if it is of one; returns the stream's state.

        Raises:
            IllegalOrderError: the event may not come now; nothing has changed.
        """
        is_of_choice = event in (Event.ROLE, Event.CONTENT, Event.FINISH)
        before = self._choices[choice] if is_of_choice else self.state
        following = (CHOICE if is_of_choice else STREAM)[before].get(event)
        if following is None or (is_of_choice and self.state is not State.OPEN):
            raise IllegalOrderError(f"{event.value} may not follow in state {before.value}")
        if not is_of_choice:
            self.state = following
        else:
            self._choices[choice] = following
            self._num_open -= following is State.FINISHED
            if not self._num_open:
                self.state = State.FINISHED
        return self.state
