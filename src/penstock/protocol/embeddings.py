"""OpenAI's embeddings: request and answer, with vLLM's and our own fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from penstock.base.errors import InvalidRequestError
from penstock.protocol.generation import Name
from penstock.protocol.strict import Unbuilt, read_request

MAX_INPUTS = 2_048  # OpenAI's limit

PoolingName = Literal["mean", "last", "cls"]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Text = str | list[int]
"""A text, or one that is tokenised already."""

UNBUILT: Unbuilt = {"add_special_tokens": (True,), "embed_dtype": ("float32",), "priority": (0,)}


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that are built; null means the same as left out."""

    model: Name
    input: str | list[str | TokenId | list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of the numbers as little-endian float32."""
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    """The vector's first numbers, as many."""
    user: Name | None = None
    """Written to the request's log line."""
    pooling: PoolingName | None = None
    normalize: bool | None = None
    """True: every vector's length is 1."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    """vLLM's: of each input keep so many tokens at the beginning, special ones included.

    -1: as many as the model takes.
    """

    @property
    def texts(self) -> list[Text]:
        """The inputs, however they were written; see `read_embedding_request` for what is refused."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [text for text in self.input if not isinstance(text, int)]

    def name_of(self, index: int) -> str:
        """The field that holds an input, for errors about it."""
        is_list = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return f"input[{index}]" if is_list else "input"


_REQUEST = msgspec.json.Decoder(EmbeddingRequest)


def read_embedding_request(body: bytes) -> EmbeddingRequest:
    """Decodes and checks a request for embeddings.

    Raises:
        InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
    """
    request = read_request(body, _REQUEST, UNBUILT)
    if isinstance(request.input, list):
        _check_list(request.input)
    for index, text in enumerate(request.texts):
        if not text:
            param = request.name_of(index)
            raise InvalidRequestError(f"{param!r} is empty", param=param)
    if request.truncate_prompt_tokens == 0:
        raise InvalidRequestError(
            "'truncate_prompt_tokens' is 0, which leaves nothing; -1 keeps what the model takes",
            param="truncate_prompt_tokens",
        )
    return request


def _check_list(given: Sequence[object]) -> None:
    if not given:
        raise InvalidRequestError("'input' is empty", param="input")
    kind = type(given[0])
    for index, one in enumerate(given):
        if type(one) is not kind:
            raise InvalidRequestError(
                "'input' mixes strings, token ids and lists of token ids; give one kind",
                param=f"input[{index}]",
            )
    if kind is not int and len(given) > MAX_INPUTS:
        raise InvalidRequestError(f"'input' has {len(given)} inputs; at most {MAX_INPUTS}", param="input")


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One input's vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | bytes
    """Bytes are sent as base64."""


class PromptUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request that generates none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: PromptUsage
