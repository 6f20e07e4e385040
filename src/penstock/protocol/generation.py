"""What requests for chat and for text completions have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from penstock.base.errors import InvalidRequestError, UnsupportedParameterError

MAX_STOP_STRINGS = 4  # OpenAI's limit
MAX_STOP_LENGTH = 1024  # ours: held-back text is bounded by it
MAX_NAME_LENGTH = 256  # ours: model and user go into log lines and error messages
MAX_SALT_LENGTH = 128  # ours: a salt is kept as long as a block of its prompts is cached

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
"""0 leaves the likeliest token, as 0 does for the temperature."""
TopK = Annotated[int, Meta(ge=-1, le=1_000_000)]
"""-1 and 0 switch it off, as in vLLM."""
Name = Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=MAX_SALT_LENGTH)]
MinP = Annotated[float, Meta(ge=0, le=1)]
MaxTokens = Annotated[int, Meta(ge=1, le=1 << 31)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_LENGTH)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream says beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Random padding against traffic analysis; only false is built."""


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """How long an answer may become."""

    field: str
    """The request's field that says so."""
    asked: int | None
    default: int | None = None
    """What holds where nothing was asked for and the context leaves that much; None for all it leaves."""


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of any request that generates; null means the same as left out."""

    prompt_field: ClassVar[str]
    """The field that holds the prompt, for errors about it."""
    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    cache_salt: CacheSalt | None = None
    """vLLM's name: cached prefixes are shared only between requests that give the same one, or none."""
    user: Name | None = None
    """Written to the request's log line."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were written."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def limit(self) -> TokenLimit:
        """The asked-for length of the answer."""
        return TokenLimit("max_tokens", self.max_tokens)

    @property
    def includes_usage(self) -> bool:
        """True if a stream is to end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        """Raises if stream options are given without a stream, or ask for what is not built."""
        if self.stream_options is None:
            return
        if not self.stream:
            raise InvalidRequestError("'stream_options' needs 'stream': true", param="stream_options")
        if self.stream_options.include_obfuscation:
            param = "stream_options.include_obfuscation"
            raise UnsupportedParameterError(f"{param!r} is not supported", param=param)
