"""Usage adds up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.protocol.usage import Usage


@given(st.integers(0), st.integers(0))
def test_the_total_is_the_sum(prompt: int, completion: int) -> None:
    """For any counts."""
    usage = Usage.of(prompt, completion)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens == prompt + completion
