"""Tells a stuck engine from a busy one: no torch, no clock, no thread of its own.

The engine's thread leaves signs of life in a :class:`Pulse`; a :class:`Watchdog` on another thread looks at
it now and then. It counts its own looks, not the time between them, so a process that was frozen and goes on
(SIGSTOP, a paused container) is not taken for stuck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Seconds between two looks. Long enough to cost an idle process nothing.
POLL_S = 1.0


@dataclass(slots=True)
class Pulse:
    """What the engine's thread is doing. Written by it alone; read elsewhere, each field by itself."""

    num_beats: int = 0
    """Grows with each forward pass and command; standing still means being stuck, or at rest."""
    is_resting: bool = True
    """True while the thread waits for commands."""
    num_sequences: int = 0
    """In the pass under way."""
    num_tokens: int = 0
    """In the pass under way."""

    def beat(self, num_sequences: int = 0, num_tokens: int = 0) -> None:
        """Says that the thread begins something new."""
        self.num_sequences, self.num_tokens = num_sequences, num_tokens
        self.is_resting = False
        self.num_beats += 1

    def rest(self) -> None:
        """Says that the thread waits for commands, which may take for ever."""
        self.is_resting = True


class Watchdog:
    """Finds that an engine's thread has done nothing new for `limit_s` seconds; 0 never finds it."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._num_beats = -1
        self._num_looks = 0

    def is_stuck(self, pulse: Pulse) -> bool:
        """The verdict of one look; call it every POLL_S seconds."""
        if pulse.is_resting or pulse.num_beats != self._num_beats:
            self._num_beats, self._num_looks = pulse.num_beats, 0
        else:
            self._num_looks += 1
        return self.limit_s > 0 and self._num_looks >= math.ceil(self.limit_s / POLL_S)
