"""Token usage as OpenAI reports it."""

from __future__ import annotations

import msgspec


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of the prompt's tokens."""

    cached_tokens: int
    """Found in the prefix cache, so not computed for this request."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request; total is always prompt plus completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @staticmethod
    def of(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Usage:
        """Usage with the total added up; `cached_tokens` are among `prompt_tokens`."""
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
        )
