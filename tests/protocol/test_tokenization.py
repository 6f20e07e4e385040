"""Requests to tokenise: a prompt, or a conversation as a chat request has it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from penstock.base.errors import (
    ClientError,
    InvalidRequestError,
    UnknownParameterError,
    UnsupportedParameterError,
)
from penstock.protocol.tokenization import (
    MAX_CHARACTERS,
    MAX_TOKENS,
    TokenizeChatRequest,
    TokenizeRequest,
    read_detokenize_request,
    read_tokenize_request,
)

TALK = [{"role": "user", "content": "hi"}]


def read(**fields: Any) -> TokenizeRequest | TokenizeChatRequest:
    """Reads a request with a model and `fields`."""
    return read_tokenize_request(json.dumps({"model": "m", **fields}).encode())


def test_a_prompt_is_read() -> None:
    """With its switches; an empty one has no tokens but special ones."""
    assert read(prompt="") == TokenizeRequest(model="m", prompt="")
    request = read(prompt="x", add_special_tokens=False, return_token_strs=True)
    assert isinstance(request, TokenizeRequest)
    assert request.add_special_tokens is False
    assert request.return_token_strs is True


def test_null_is_the_same_as_left_out() -> None:
    """Also where it decides between the two forms."""
    assert read(prompt="x", messages=None, return_token_strs=None) == read(prompt="x")
    assert read(messages=TALK, prompt=None, add_generation_prompt=None) == read(messages=TALK)


def test_a_conversation_is_read_as_chat_reads_it() -> None:
    """Same messages, same errors, and the field is named the same."""
    request = read(messages=TALK, tools=[], return_token_strs=True)
    assert isinstance(request, TokenizeChatRequest)
    assert request.chat.messages[0].text == "hi"
    assert request.add_generation_prompt
    assert request.return_token_strs
    silent = read(messages=TALK, add_generation_prompt=False, add_special_tokens=False)
    assert isinstance(silent, TokenizeChatRequest)
    assert not silent.add_generation_prompt
    with pytest.raises(ClientError) as refused:
        read(messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    assert refused.value.param == "messages[0].content[0].type"


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({}, InvalidRequestError, "prompt"),
        ({"prompt": 5}, InvalidRequestError, "prompt"),
        ({"prompt": "x" * (MAX_CHARACTERS + 1)}, InvalidRequestError, "prompt"),
        ({"prompt": "x", "messages": TALK}, InvalidRequestError, "prompt"),
        ({"messages": []}, InvalidRequestError, "messages"),
        ({"messages": TALK, "add_special_tokens": True}, InvalidRequestError, "add_special_tokens"),
        ({"messages": TALK, "temperature": 1}, UnknownParameterError, "temperature"),
        ({"messages": TALK, "chat_template": "x"}, UnsupportedParameterError, "chat_template"),
        ({"prompt": "x", "add_generation_prompt": True}, UnknownParameterError, "add_generation_prompt"),
        ({"prompt": "x", "add_special_tokens": 1}, InvalidRequestError, "add_special_tokens"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], kind: type[ClientError], param: str) -> None:
    """Nothing is ignored."""
    with pytest.raises(kind) as refused:
        read(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":"m","prompt":"\\ud800"}', b"[" * 100_000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    """A lone surrogate is no text."""
    for reader in (read_tokenize_request, read_detokenize_request):
        with pytest.raises(InvalidRequestError):
            reader(body)


def test_token_ids_are_bounded() -> None:
    """In number and in size."""
    for tokens in ([-1], [1 << 31], [True], ["5"], [0] * (MAX_TOKENS + 1)):
        with pytest.raises(InvalidRequestError):
            read_detokenize_request(msgspec.json.encode({"model": "m", "tokens": tokens}))
    assert read_detokenize_request(b'{"model":"m","tokens":[]}').tokens == []
