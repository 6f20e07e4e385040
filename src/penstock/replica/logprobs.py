"""Log-probabilities of tokens in the wire shapes of chat and of text completions."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.engine.sampling import TokenLogprobs
from penstock.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from penstock.protocol.completions import CompletionLogprobs
from penstock.text.tokenizer import Tokenizer

# What stands for the logarithm of 0, which JSON cannot say; OpenAI's number for it.
LEAST = -9999.0
Entry = tuple[int, TokenLogprobs | None]
"""A token with its log-probabilities; None for a text's first token, which nothing comes before."""


def chat_logprobs(entries: Iterable[tuple[int, TokenLogprobs]], tokenizer: Tokenizer) -> ChatLogprobs:
    """The shape of chat completions."""

    def named(token: int, logprob: float) -> TopLogprob:
        data = tokenizer.token_bytes(token)
        return TopLogprob(token=_text(data), logprob=max(logprob, LEAST), bytes=list(data))

    content = []
    for token, said in entries:
        own = named(token, said.token)
        top = [named(*one) for one in said.top]
        content.append(TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
    return ChatLogprobs(content=content)


class CompletionLogprobsBuilder:
    """The shape of text completions, whose offsets go on from event to event."""

    def __init__(self, tokenizer: Tokenizer, *, with_top: bool) -> None:
        """`with_top`: alternatives were asked for."""
        self._tokenizer = tokenizer
        self._with_top = with_top
        self._offset = 0

    def build(self, entries: Iterable[Entry]) -> CompletionLogprobs:
        """The next tokens' part."""
        tokens, logprobs, tops, offsets = (
            list[str](),
            list[float | None](),
            list[dict[str, float] | None](),
            list[int](),
        )
        for token, said in entries:
            data = self._tokenizer.token_bytes(token)
            tokens.append(_name(data))
            offsets.append(self._offset)
            if self._tokenizer.has_text(token):
                self._offset += sum(byte & 0xC0 != 0x80 for byte in data)  # characters that begin here
            logprobs.append(None if said is None else max(said.token, LEAST))
            tops.append(None if said is None else self._top(token, said))
        return CompletionLogprobs(
            tokens=tokens,
            token_logprobs=logprobs,
            top_logprobs=tops if self._with_top else None,
            text_offset=offsets,
        )

    def _top(self, token: int, said: TokenLogprobs) -> dict[str, float]:
        """The alternatives, the token itself among them even if it is unlikely, as OpenAI says it."""
        return {
            _name(self._tokenizer.token_bytes(one)): max(logprob, LEAST)
            for one, logprob in (*said.top, (token, said.token))
        }


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _name(data: bytes) -> str:
    """A token as a key: what is no text is spelled out, so that two broken ones do not become one."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
