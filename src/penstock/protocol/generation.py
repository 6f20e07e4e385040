"""What requests for chat and for text completions have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from penstock.base.errors import InvalidRequestError, UnsupportedParameterError
from penstock.protocol.response_format import (
    GrammarSpec,
    ResponseFormat,
    StructuredOutputs,
    read_grammar,
)
from penstock.protocol.strict import shown

MAX_STOP_STRINGS = 4  # OpenAI's limit
MAX_STOP_LENGTH = 1024  # ours: held-back text is bounded by it
MAX_NAME_LENGTH = 256  # ours: model and user go into log lines and error messages
MAX_STOP_TOKENS = 64  # ours
MAX_BIASED_TOKENS = 1024  # ours
MAX_ID_DIGITS = 10
MAX_CHOICES = 128  # OpenAI's limit
MAX_TOP_LOGPROBS = 20  # OpenAI's limit
MAX_SALT_LENGTH = 128  # ours: a salt is kept as long as a block of its prompts is cached

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
"""0 leaves the likeliest token, as 0 does for the temperature."""
TopK = Annotated[int, Meta(ge=-1, le=1_000_000)]
"""-1 and 0 switch it off, as in vLLM."""
Name = Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
# A null character begins the salts that are made here.
CacheSalt = Annotated[str, Meta(min_length=1, max_length=MAX_SALT_LENGTH, pattern="^[^\0]")]
MinP = Annotated[float, Meta(ge=0, le=1)]
MaxTokens = Annotated[int, Meta(ge=1, le=1 << 31)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Stop = StopString | Annotated[list[StopString | TokenId], Meta(max_length=MAX_STOP_STRINGS)]
StopTokenIds = Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
LogitBias = Annotated[dict[str, Bias], Meta(max_length=MAX_BIASED_TOKENS)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]
Priority = Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)]
Tier = Literal["auto", "default", "flex", "priority"]


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
    """Up to four, as texts or as token ids."""
    stop_token_ids: StopTokenIds | None = None
    ignore_eos: bool | None = None
    """vLLM's name: the model's own end tokens do not end the answer."""
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    n: Choices | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    priority: Priority | None = None
    """vLLM's name: below 0 before others, above 0 after them; ours has these three classes."""
    service_tier: Tier | None = None
    """OpenAI's: `priority` before others, `flex` after them."""
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    """vLLM's, as the two below are vLLM's or SGLang's."""
    regex: str | None = None
    grammar: str | None = None
    """In Lark."""
    cache_salt: CacheSalt | None = None
    """vLLM's name: cached prefixes are shared only between requests that give the same one, or none."""
    user: Name | None = None
    """Written to the request's log line."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were written."""
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(stop for stop in self.stop or () if isinstance(stop, str))

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The token ids that end the answer beside the model's own."""
        listed = () if isinstance(self.stop, str) else self.stop or ()
        return frozenset((*(stop for stop in listed if isinstance(stop, int)), *(self.stop_token_ids or ())))

    @property
    def num_choices(self) -> int:
        """Answers asked for to each prompt."""
        return self.n or 1

    @property
    def urgency(self) -> int:
        """Below 0 before others, above 0 after them."""
        if self.priority:
            return self.priority
        return {"priority": -1, "flex": 1}.get(self.service_tier or "", 0)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """The logit biases by token id.

        Raises:
            InvalidRequestError: a key is no token id.
        """
        return tuple(sorted(_biases(self.logit_bias or {})))

    @property
    def limit(self) -> TokenLimit:
        """The asked-for length of the answer."""
        return TokenLimit("max_tokens", self.max_tokens)

    @property
    def form(self) -> GrammarSpec | None:
        """The form that the answer must have; None for any.

        Raises:
            InvalidRequestError: two forms, or one that cannot be read; `param` names the field.
        """
        return read_grammar(
            response_format=self.response_format,
            structured_outputs=self.structured_outputs,
            regex=self.regex,
            grammar=self.grammar,
        )

    @property
    def log_fields(self) -> dict[str, str]:
        """What of the request goes into its log line."""
        return {} if self.user is None else {"user": self.user}

    @property
    def includes_usage(self) -> bool:
        """True if a stream is to end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Raises for what its type alone does not refuse."""
        self._check_stream_options()
        if self.priority and self.service_tier in ("priority", "flex"):
            raise InvalidRequestError(
                "'priority' and 'service_tier' exclude each other", param="service_tier"
            )
        _ = self.biases
        if self.form is not None:
            self.refuse_free_ends(self.form.param)

    def refuse_free_ends(self, param: str) -> None:
        """Raises if something is asked for that keeps an answer from ending where its form ends."""
        for name, value in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens)):
            if value:
                raise InvalidRequestError(f"{name!r} and {param!r} exclude each other", param=name)

    def _check_stream_options(self) -> None:
        if self.stream_options is None:
            return
        if not self.stream:
            raise InvalidRequestError("'stream_options' needs 'stream': true", param="stream_options")
        if self.stream_options.include_obfuscation:
            param = "stream_options.include_obfuscation"
            raise UnsupportedParameterError(f"{param!r} is not supported", param=param)


def _biases(given: Mapping[str, float]) -> Iterator[tuple[int, float]]:
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= MAX_ID_DIGITS) or key != str(int(key)):
            raise InvalidRequestError(
                f"the keys of 'logit_bias' are token ids, {shown(key)!r} is none", param="logit_bias"
            )
        yield int(key), bias
