"""OpenAI's text completions: request, answer, stream chunk."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from penstock.base.errors import InvalidRequestError
from penstock.protocol.generation import GenerationRequest, TokenId, TokenLimit, TopLogprobs
from penstock.protocol.strict import Unbuilt, read_request
from penstock.protocol.usage import Usage

MAX_PROMPTS = 2048  # ours
DEFAULT_MAX_TOKENS = 16  # OpenAI's default for this endpoint

UNBUILT: Unbuilt = {
    "best_of": (1,),
    "suffix": ("",),
}


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """The fields of a completion request that are built; see UNBUILT for the others."""

    prompt_field: ClassVar[str] = "prompt"
    prompt: str | list[str | TokenId | list[TokenId]]
    max_tokens: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None
    """0 with `echo` gives the prompt back, with its log-probabilities if they are asked for."""
    echo: bool | None = None
    logprobs: TopLogprobs | None = None

    @property
    def limit(self) -> TokenLimit:
        """See GenerationRequest; this endpoint has a default."""
        return TokenLimit("max_tokens", self.max_tokens, DEFAULT_MAX_TOKENS)

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives whose log-probabilities are asked for with each token's own; None: none at all."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt, as text or as token ids; see `read_completion_request` for what is refused."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(entry, int) for entry in self.prompt):
            return [cast("list[int]", self.prompt)]
        return cast("list[str | list[int]]", self.prompt)


_REQUEST = msgspec.json.Decoder(CompletionRequest)


def read_completion_request(body: bytes) -> CompletionRequest:
    """Decodes and checks a completion request.

    Raises:
        InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
    """
    request = read_request(body, _REQUEST, UNBUILT)
    _check_prompt(request.prompt)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequestError("'max_tokens' of 0 needs 'echo': true", param="max_tokens")
    request.check()
    return request


def _check_prompt(prompt: str | list[str | int | list[int]]) -> None:
    if isinstance(prompt, str):
        return
    if not prompt:
        raise InvalidRequestError("the list of prompts is empty", param="prompt")
    kinds = {type(entry) for entry in prompt}
    if int in kinds and len(kinds) > 1:
        raise InvalidRequestError(
            "'prompt' is a text, token ids, or a list of texts or of lists of token ids; not numbers beside "
            "others",
            param="prompt",
        )
    if int not in kinds and len(prompt) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"{len(prompt)} prompts are more than the {MAX_PROMPTS} that one request may have", param="prompt"
        )


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of a text's tokens, in lists of equal length. A text's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]
    """Where each token begins in the text, in characters."""


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, or one answer's part of a chunk."""

    text: str
    finish_reason: str | None = None
    index: int = 0
    logprobs: CompletionLogprobs | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, or one event of a stream: this API has one shape for both."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
