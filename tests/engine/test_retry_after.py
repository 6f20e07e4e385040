"""When to come back, by what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.retry_after import MAX_S, MIN_S, retry_after_s


@pytest.mark.parametrize(
    ("ends", "now", "expected"),
    [
        ([100, 105, 110, 115], 115, 5),  # one in five seconds
        ([100, 105, 110, 115], 121, 7),  # and then a pause, rounded up
        ([0, *(i / 10 for i in range(1, 50))], 5, 1),  # ten a second
        ([100], 103, 3),  # nothing ended in three seconds
        ([100], 100, 1),
        ([0], 1000, 60),
    ],
)
def test_the_rate_of_the_last_ends_tells(ends: list[float], now: float, expected: int) -> None:
    """The first moment is the beginning of work, each other one the end of a request."""
    assert retry_after_s(ends, now) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted), st.floats(0, 1e6))
def test_it_is_bounded_and_does_not_shrink_while_nothing_ends(ends: list[float], wait: float) -> None:
    """A client is never told to come back at once, nor in an hour."""
    soon, later = retry_after_s(ends, ends[-1]), retry_after_s(ends, ends[-1] + wait)
    assert MIN_S <= soon <= later <= MAX_S
