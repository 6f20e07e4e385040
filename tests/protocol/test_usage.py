"""Usage adds up."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage

from penstock.protocol.usage import Usage


@given(st.integers(0), st.integers(0))
def test_the_total_is_the_sum(prompt: int, completion: int) -> None:
    """For any counts."""
    usage = Usage.of(prompt, completion)
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens == prompt + completion


def test_cached_tokens_are_told_where_openai_tells_them() -> None:
    """They are among the prompt's, so the total does not change."""
    parsed = CompletionUsage.model_validate_json(msgspec.json.encode(Usage.of(9, 2, 8)), strict=True)
    assert parsed.prompt_tokens_details is not None
    assert (parsed.prompt_tokens_details.cached_tokens, parsed.total_tokens) == (8, 11)
