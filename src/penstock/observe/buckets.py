"""A histogram that costs a binary search to feed, for what happens at every token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Buckets:
    """Counts of values up to each bound, and their sum. One thread feeds it; any may read."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` rise; what is above the last one is counted too."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Pairs of bound and number of values up to it, as Prometheus' exposition wants them."""
        pairs, total = [], 0
        for bound, count in zip((*self.bounds, float("inf")), list(self.counts), strict=True):
            total += count
            pairs.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        return pairs


def one_two_five(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `largest`: vLLM's bounds for numbers of tokens."""
    bounds, decade = [], 1
    while decade <= largest:
        bounds += [float(step * decade) for step in (1, 2, 5) if step * decade <= largest]
        decade *= 10
    return tuple(bounds)
