"""One request's way from token ids to text: certain characters, stop strings, a true finish reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from penstock.base.errors import ClientGoneError, InternalError
from penstock.engine.sequence import FinishReason, Output
from penstock.engine.service import TokenStream
from penstock.protocol.usage import Usage
from penstock.text.detokenizer import Decodes, Detokenizer, StopMatcher

_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


class Generation:
    """Pieces of text in order; then `finish_reason` and `usage` hold."""

    def __init__(
        self, stream: TokenStream, tokenizer: Decodes, stops: Sequence[str], num_prompt_tokens: int
    ) -> None:
        self._stream = stream
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stops)
        self._num_prompt_tokens = num_prompt_tokens
        self.num_tokens = 0
        self.finish_reason: str | None = None

    @property
    def usage(self) -> Usage:
        """Tokens so far; an end token counts, tokens computed after a stop string do not."""
        return Usage.of(self._num_prompt_tokens, self.num_tokens, self._stream.num_cached_tokens)

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it becomes certain. A piece may be empty: a token came that shows nothing yet.

        Raises:
            EngineError: the engine failed on this request.
            ClientGoneError: the request was cancelled.
        """
        async for output in self._stream:
            if output.error is not None:  # first: a piece before it would open the answer
                raise output.error
            if output.finish is FinishReason.CANCELLED:
                raise ClientGoneError("the request was cancelled")
            yield self._take(output)
            if self._matcher.is_stopped:
                self.finish_reason = "stop"
                return
            if output.finish is not None:
                yield self._end(output)
                return
        raise InternalError("the token stream ended without an end")

    def _take(self, output: Output) -> str:
        assert output.token is not None  # only ends by error and by cancellation have none
        self.num_tokens += 1
        if output.finish is FinishReason.STOP:
            return ""  # the end token is no text
        return self._matcher.push(self._detokenizer.push(output.token))

    def _end(self, output: Output) -> str:
        assert output.finish is not None
        text = self._matcher.push(self._detokenizer.flush())
        self.finish_reason = "stop" if self._matcher.is_stopped else _REASONS[output.finish]
        return text + self._matcher.flush()
