"""No process of a benchmark outlives it, however it ends. Imports the standard library only."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Has Linux kill this process when the one that started it ends, even while it is stopped."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def unwind_when_terminated() -> None:
    """Makes SIGTERM end this process as Ctrl-C does: through its `with` blocks."""

    def unwind(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would cut the unwinding short
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, unwind)
