"""When a client that finds the queue full should come back. A pure function of what was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

MIN_S = 1
MAX_S = 60


def retry_after_s(ends: Sequence[float], now: float) -> int:
    """Whole seconds in which a place becomes free, by the rate of the last ends.

    `ends` begins with a moment from which on there was work and goes on with the times at which requests
    ended. Before the first end the answer grows with the time waited: what has lasted for a while
    is best expected to last as long again.

    >>> retry_after_s([100.0, 104.0, 108.0], 112.0)
    6
    """
    elapsed = now - ends[0]
    return min(max(math.ceil(elapsed / max(len(ends) - 1, 1)), MIN_S), MAX_S)
