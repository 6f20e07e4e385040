"""What chat and text completions share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.base.errors import InvalidRequestError
from penstock.protocol.completions import CompletionRequest, read_completion_request


def read(**fields: Any) -> CompletionRequest:
    """A request with these fields."""
    return read_completion_request(json.dumps({"model": "m", "prompt": "x", **fields}).encode())


@pytest.mark.parametrize(
    ("stop", "expected"), [(None, ()), ("a", ("a",)), ([], ()), (["a", "b"], ("a", "b")), ("你", ("你",))]
)
def test_stop_strings_come_in_one_form(stop: Any, expected: tuple[str, ...]) -> None:
    """However they were written."""
    assert read(stop=stop).stop_strings == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "top_p": 0, "top_k": 0, "min_p": 0, "seed": -(1 << 63)},
        {"temperature": 2, "top_p": 1, "top_k": 1_000_000, "min_p": 1, "seed": (1 << 63) - 1},
        {"stop": ["x" * 1024] * 4, "max_tokens": 1 << 31, "user": "u" * 256, "model": "m" * 256},
        {"temperature": 0.0, "top_p": 0.5, "cache_salt": "s"},
        {"cache_salt": "s" * 128},
    ],
)
def test_the_bounds_are_inside(fields: dict[str, Any]) -> None:
    """Every bound is the last value that is allowed."""
    request = read(**fields)
    assert all(getattr(request, name) == value for name, value in fields.items())


@pytest.mark.parametrize("salt", ["", "s" * 129, 7])
def test_a_salt_is_a_string_of_bounded_length(salt: Any) -> None:
    """An empty one would look like a salt and share everything."""
    with pytest.raises(InvalidRequestError, match="cache_salt") as caught:
        read(cache_salt=salt)
    assert caught.value.param == "cache_salt"


@pytest.mark.parametrize(
    ("options", "expected"),
    [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)],
)
def test_usage_is_included_where_it_was_asked_for(options: Any, expected: bool) -> None:
    """And not otherwise."""
    assert read(stream=True, stream_options=options).includes_usage is expected
