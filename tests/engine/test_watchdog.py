"""Telling a stuck engine from a busy and from an idle one."""

from __future__ import annotations

import pytest

from penstock.engine.watchdog import POLL_S, Pulse, Watchdog


def test_a_step_that_stands_still_is_stuck_at_its_limit() -> None:
    """Not a look earlier; the first look only sees it."""
    pulse, watchdog = Pulse(), Watchdog(5 * POLL_S)
    pulse.beat()
    assert [watchdog.is_stuck(pulse) for _ in range(6)] == [False] * 5 + [True]


def test_each_beat_begins_a_new_limit() -> None:
    """A step that failed is repeated sequence by sequence, and each has all the time."""
    pulse, watchdog = Pulse(), Watchdog(3 * POLL_S)
    for _ in range(10):
        pulse.beat()
        assert not any(watchdog.is_stuck(pulse) for _ in range(3))
    assert watchdog.is_stuck(pulse)


def test_an_idle_engine_is_never_stuck() -> None:
    """It waits for commands, which is its right; the time does not count against the next step."""
    pulse, watchdog = Pulse(), Watchdog(POLL_S)
    assert not any(watchdog.is_stuck(pulse) for _ in range(10))
    pulse.beat()
    pulse.rest()
    assert not any(watchdog.is_stuck(pulse) for _ in range(10))
    pulse.beat()
    assert [watchdog.is_stuck(pulse) for _ in range(2)] == [False, True]


def test_a_busy_engine_at_rest_between_two_looks_is_not_stuck() -> None:
    """Each look sees another beat."""
    pulse, watchdog = Pulse(), Watchdog(POLL_S)
    for _ in range(10):
        pulse.rest()
        pulse.beat()
        assert not watchdog.is_stuck(pulse)


def test_no_limit_never_finds_anything() -> None:
    """0 turns the watchdog off."""
    pulse, watchdog = Pulse(), Watchdog(0.0)
    pulse.beat()
    assert not any(watchdog.is_stuck(pulse) for _ in range(1000))


@pytest.mark.parametrize("limit_s", [0.001, POLL_S / 2, POLL_S])
def test_a_limit_below_the_pause_between_looks_is_one_such_pause(limit_s: float) -> None:
    """A single look can tell nothing."""
    pulse, watchdog = Pulse(), Watchdog(limit_s)
    pulse.beat()
    assert [watchdog.is_stuck(pulse) for _ in range(2)] == [False, True]


def test_looking_now_and_then_costs_an_idle_process_nothing() -> None:
    """A wake-up a second at most."""
    assert POLL_S >= 1
