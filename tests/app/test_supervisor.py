"""The restart policy; the processes themselves are in tests/end_to_end."""

from __future__ import annotations

import socket

from penstock.app.supervisor import (
    FIRST_BACKOFF_S,
    LAST_BACKOFF_S,
    MAX_FAILED_STARTS,
    STABLE_AFTER_S,
    Restarts,
    local_url,
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


def test_an_address_is_a_url() -> None:
    """IPv6 in brackets."""
    with socket.create_server(("127.0.0.1", 0)) as four:
        assert local_url(four) == f"http://127.0.0.1:{four.getsockname()[1]}/v1"
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        assert local_url(six) == f"http://[::1]:{six.getsockname()[1]}/v1"
