"""What the metrics hear of each request: its first token, and the gaps between the following ones."""

from __future__ import annotations

from collections.abc import Callable

from penstock.observe import metrics as observe
from penstock.observe import names


class RequestMeters:
    """Feeds the histograms of one replica."""

    def __init__(self, metrics: observe.Metrics, now: Callable[[], float]) -> None:
        """`now` tells the time in seconds."""
        self._now = now
        self._first_token = metrics.histogram(names.ENGINE_TTFT)

    def begin(self, arrival: float) -> Callable[[int], None]:
        """What to call, with its choice's index, at every token of a request that came at `arrival`."""
        is_first = True

        def on_token(choice: int) -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                self._first_token.observe(self._now() - arrival)

        return on_token
