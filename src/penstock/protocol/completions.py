"""OpenAI's text completions: request, answer, stream chunk."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from penstock.base.errors import UnsupportedParameterError
from penstock.protocol.generation import GenerationRequest, TokenLimit
from penstock.protocol.strict import Unbuilt, read_request
from penstock.protocol.usage import Usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's default for this endpoint

UNBUILT: Unbuilt = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "logprobs": (),
    "n": (1,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "suffix": ("",),
}


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """The fields of a completion request that are built; see UNBUILT for the others."""

    prompt_field: ClassVar[str] = "prompt"
    prompt: str | list[str | int | list[int]]

    @property
    def limit(self) -> TokenLimit:
        """See GenerationRequest; this endpoint has a default."""
        return TokenLimit("max_tokens", self.max_tokens, DEFAULT_MAX_TOKENS)

    @property
    def text(self) -> str:
        """The one prompt; see `read_completion_request` for what is refused."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        assert isinstance(prompt, str)
        return prompt


_REQUEST = msgspec.json.Decoder(CompletionRequest)


def read_completion_request(body: bytes) -> CompletionRequest:
    """Decodes and checks a completion request.

    Raises:
        InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
    """
    request = read_request(body, _REQUEST, UNBUILT)
    prompt = request.prompt
    if not isinstance(prompt, str) and not (len(prompt) == 1 and isinstance(prompt[0], str)):
        raise UnsupportedParameterError(
            "'prompt' must be one string: lists of prompts and token ids are not supported", param="prompt"
        )
    request.check_stream_options()
    return request


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, or one answer's part of a chunk."""

    text: str
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, or one event of a stream: this API has one shape for both."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
