"""When a child that ended is started again."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
# A child that served this long has recovered: its next failure counts as the first. Loading does not count,
# or a model that takes a minute to load and then fails would be loaded for ever.
STABLE_AFTER_S = 60.0
# A child may fail this many times in a row.
MAX_FAILED_STARTS = 5


@dataclass(slots=True)
class Restarts:
    """Restart policy of one child: a pure function of how its lives went."""

    num_failures: int = 0

    def next_delay_s(self, served_s: float) -> float | None:
        """Seconds to wait before the next start, after `served_s` of being ready; None to give up."""
        self.num_failures = 1 if served_s >= STABLE_AFTER_S else self.num_failures + 1
        if self.num_failures > MAX_FAILED_STARTS:
            return None
        return float(min(FIRST_BACKOFF_S * 2 ** (self.num_failures - 1), LAST_BACKOFF_S))
