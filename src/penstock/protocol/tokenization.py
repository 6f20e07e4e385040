"""vLLM's /tokenize and /detokenize: requests and answers."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from penstock.base.errors import InvalidRequestError
from penstock.protocol.chat import ChatRequest, read_chat_request
from penstock.protocol.embeddings import TokenId
from penstock.protocol.generation import Name
from penstock.protocol.strict import read_fields, read_request

MAX_TOKENS = 1 << 20  # ours
MAX_CHARACTERS = 1 << 22  # ours: some seconds of a thread
# Fields of a chat request that its prompt depends on; they are read as a chat request has them.
CHAT_FIELDS = frozenset({"model", "messages", "tools", "tool_choice", "chat_template_kwargs"})

UNBUILT: dict[str, tuple[Any, ...]] = {
    "chat_template": (),
    "continue_final_message": (False,),
    "mm_processor_kwargs": (),
}


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text to be tokenised."""

    model: Name
    prompt: Annotated[str, Meta(max_length=MAX_CHARACTERS)]
    add_special_tokens: bool | None = None
    """False leaves out those that the checkpoint wants around a text."""
    return_token_strs: bool | None = None
    """True: the answer has the tokens as the vocabulary writes them, too."""


class _TemplateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None


class TokenizeChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation to be tokenised as a chat request with it would be."""

    chat: ChatRequest
    add_generation_prompt: bool
    """False ends the prompt with the last message."""
    return_token_strs: bool


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Token ids to be made text."""

    model: Name
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]


_TEXT = msgspec.json.Decoder(TokenizeRequest)
_OPTIONS = msgspec.json.Decoder(_TemplateOptions)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


def read_tokenize_request(body: bytes) -> TokenizeRequest | TokenizeChatRequest:
    """Decodes and checks a request to tokenise; one with `messages` is of a conversation.

    Raises:
        InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
    """
    fields = {name: raw for name, raw in read_fields(body).items() if bytes(raw) != b"null"}
    if "messages" not in fields:
        return read_request(body, _TEXT, UNBUILT | {"messages": ()})
    if "prompt" in fields:
        raise InvalidRequestError("'prompt' and 'messages' exclude each other", param="prompt")
    chat = {name: raw for name, raw in fields.items() if name in CHAT_FIELDS}
    rest = {name: raw for name, raw in fields.items() if name not in CHAT_FIELDS}
    options = read_request(msgspec.json.encode(rest), _OPTIONS, UNBUILT)
    if options.add_special_tokens:
        raise InvalidRequestError(
            "'add_special_tokens' is for a prompt: in a conversation the template writes the special tokens",
            param="add_special_tokens",
        )
    return TokenizeChatRequest(
        chat=read_chat_request(msgspec.json.encode(chat)),
        add_generation_prompt=options.add_generation_prompt is not False,
        return_token_strs=bool(options.return_token_strs),
    )


def read_detokenize_request(body: bytes) -> DetokenizeRequest:
    """Decodes and checks a request to detokenise.

    Raises:
        InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
    """
    return read_request(body, _DETOKENIZE, {})


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /detokenize."""

    prompt: str
