"""What a child is called by; its life is in tests/end_to_end."""

from __future__ import annotations

import socket

from penstock.app.child import local_url


def test_an_address_is_a_url() -> None:
    """IPv6 in brackets."""
    with socket.create_server(("127.0.0.1", 0)) as four:
        assert local_url(four) == f"http://127.0.0.1:{four.getsockname()[1]}/v1"
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        assert local_url(six) == f"http://[::1]:{six.getsockname()[1]}/v1"
