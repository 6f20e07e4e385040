"""The restart policy; the processes themselves are in tests/end_to_end."""

from __future__ import annotations

from penstock.app.restarts import (
    FIRST_BACKOFF_S,
    LAST_BACKOFF_S,
    MAX_FAILED_STARTS,
    STABLE_AFTER_S,
    Restarts,
)


def test_the_delay_doubles_up_to_a_bound() -> None:
    """A child that fails at once is not started in a busy loop."""
    delays = [Restarts(number).next_delay_s(0.0) for number in range(MAX_FAILED_STARTS)]
    assert delays[0] == FIRST_BACKOFF_S
    assert delays == [min(FIRST_BACKOFF_S * 2**number, LAST_BACKOFF_S) for number in range(MAX_FAILED_STARTS)]


def test_too_many_failures_in_a_row_end_it() -> None:
    """Also of a child that takes long to load and never serves."""
    restarts = Restarts()
    delays = [restarts.next_delay_s(0.0) for _ in range(MAX_FAILED_STARTS + 1)]
    assert delays[-1] is None
    assert None not in delays[:-1]


def test_serving_for_long_forgives_earlier_failures() -> None:
    """A crash a day must not add up."""
    restarts = Restarts()
    for _ in range(3 * MAX_FAILED_STARTS):
        assert restarts.next_delay_s(STABLE_AFTER_S) == FIRST_BACKOFF_S
    assert restarts.next_delay_s(STABLE_AFTER_S - 1) == 2 * FIRST_BACKOFF_S
