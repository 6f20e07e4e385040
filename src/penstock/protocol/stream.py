"""The legal order of a streamed answer, as a transition table.

    start ── role ──▶ open ── finish ──▶ finished ── usage ──▶ accounted
      │                │ ▲                  │                     │
      │             content                done                  done
      │                                     ▼                     ▼
      └──────── error, from anywhere ──▶ failed                 done

A text completion has no role: its first event is content or finish. `done` and `failed` are the two terminal
states: a stream reaches exactly one of them, once, and nothing follows.
"""

from __future__ import annotations

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
    """How far a stream is."""

    START = "start"
    OPEN = "open"
    FINISHED = "finished"
    ACCOUNTED = "accounted"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """True if nothing may follow."""
        return not TRANSITIONS[self]


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.START: {
        Event.ROLE: State.OPEN,
        Event.CONTENT: State.OPEN,
        Event.FINISH: State.FINISHED,
        Event.ERROR: State.FAILED,
    },
    State.OPEN: {Event.CONTENT: State.OPEN, Event.FINISH: State.FINISHED, Event.ERROR: State.FAILED},
    State.FINISHED: {Event.USAGE: State.ACCOUNTED, Event.DONE: State.DONE, Event.ERROR: State.FAILED},
    State.ACCOUNTED: {Event.DONE: State.DONE, Event.ERROR: State.FAILED},
    State.DONE: {},
    State.FAILED: {},
}


class IllegalOrderError(ValueError):
    """An event where the table does not allow it."""


class StreamOrder:
    """Follows one stream through the table."""

    def __init__(self) -> None:
        self.state = State.START

    def advance(self, event: Event) -> State:
        """Takes one event; returns the new state.

        Raises:
            IllegalOrderError: the event may not come now; the state is left as it was.
        """
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise IllegalOrderError(f"{event.value} may not follow in state {self.state.value}")
        self.state = following
        return following
