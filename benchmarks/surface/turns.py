"""Two kinds of one work, in turns."""

from __future__ import annotations

from collections.abc import Callable


def speeds(
    seconds_per_token: Callable[[str], float], first: str, second: str, repeats: int
) -> dict[str, list[float]]:
    """Tokens per second by kind. A repeat is first, second, second, first: drifts of the machine hit both."""
    found: dict[str, list[float]] = {first: [], second: []}
    for turn in range(repeats + 1):
        seconds = {first: 0.0, second: 0.0}
        for kind in (first, second, second, first):
            seconds[kind] += seconds_per_token(kind) / 2
        if turn:  # the first one warms up
            for kind, spent in seconds.items():
                found[kind].append(1 / spent)
    return found
