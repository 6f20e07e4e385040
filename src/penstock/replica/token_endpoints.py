"""/tokenize and /detokenize: what the model's tokenizer makes of a text, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import InvalidRequestError
from penstock.protocol.chat import ChatRequest
from penstock.protocol.tokenization import (
    Detokenized,
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeRequest,
    Tokens,
    read_detokenize_request,
    read_tokenize_request,
)
from penstock.replica.embedding import refuse_unknown_tokens
from penstock.replica.model import Served

EncodeChat = Callable[[ChatRequest, bool], list[int]]
"""Token ids of a conversation, with the assistant's turn opened or not. Raises PenstockError."""


class TokenEndpoints:
    """Answers in token ids and in text."""

    def __init__(self, model: Served, encode_chat: EncodeChat | None, limits: HttpLimits) -> None:
        """`encode_chat`: None for a model that does not chat."""
        self._model = model
        self._encode_chat = encode_chat
        self._limits = limits

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {
            ("POST", "/tokenize"): Endpoint(self._tokenize),
            ("POST", "/detokenize"): Endpoint(self._detokenize),
        }

    async def _tokenize(self, exchange: Exchange) -> None:
        body = await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)
        request = await asyncio.to_thread(read_tokenize_request, body)
        model = request.chat.model if isinstance(request, TokenizeChatRequest) else request.model
        self._model.check_name(model)
        exchange.log_fields |= {"model": model}
        await exchange.respond(200, await asyncio.to_thread(self._encode, request))

    async def _detokenize(self, exchange: Exchange) -> None:
        body = await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)
        request = await asyncio.to_thread(read_detokenize_request, body)
        self._model.check_name(request.model)
        exchange.log_fields |= {"model": request.model}
        await exchange.respond(200, await asyncio.to_thread(self._decode, request))

    def _encode(self, request: TokenizeRequest | TokenizeChatRequest) -> bytes:
        if isinstance(request, TokenizeRequest):
            specials = request.add_special_tokens is not False
            ids = self._model.tokenizer.encode(request.prompt, add_special_tokens=specials)
        elif self._encode_chat is not None:
            ids = self._encode_chat(request.chat, request.add_generation_prompt)
        else:
            raise InvalidRequestError(
                f"the model {self._model.name!r} does not chat; give a 'prompt'", param="messages"
            )
        tokenizer = self._model.tokenizer
        strings = [tokenizer.token(token) or "" for token in ids] if request.return_token_strs else None
        return msgspec.json.encode(
            Tokens(
                count=len(ids),
                max_model_len=self._model.max_model_len,
                tokens=ids,
                token_strs=strings,
            )
        )

    def _decode(self, request: DetokenizeRequest) -> bytes:
        refuse_unknown_tokens(self._model, request.tokens, "tokens")
        return msgspec.json.encode(Detokenized(prompt=self._model.tokenizer.decode_all(request.tokens)))
