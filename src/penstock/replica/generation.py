"""One answer's way from token ids to text: certain characters, stop strings, a true finish reason."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass

from penstock.base.errors import ClientGoneError, InternalError
from penstock.engine.sampling import TokenLogprobs
from penstock.engine.sequence import FinishReason, Output
from penstock.text.detokenizer import Decodes, Detokenizer, StopMatcher
from penstock.text.fragments import Content, Fragment, OutputParser

_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to an answer. It may be nothing: the token shows nothing yet."""

    fragments: Sequence[Fragment] = ()
    logprobs: tuple[int, TokenLogprobs] | None = None
    """The token and its log-probabilities, where they were asked for. Its text may come later."""


class Generation:
    """Pieces of an answer in order; then `finish_reason` and `num_tokens` hold."""

    def __init__(
        self, tokenizer: Decodes, stops: Sequence[str] = (), parser: OutputParser | None = None
    ) -> None:
        """Without a `parser` all text is content."""
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stops)
        self._parser = parser
        self.num_tokens = 0
        """Tokens so far; an end token counts, tokens computed after a stop string do not."""
        self.tokens: list[int] = []
        """The tokens that are text."""
        self.finish_reason: str | None = None
        """Set with the last piece; None after it means that the request goes on in another engine."""

    def resume(self, tokens: Sequence[int]) -> list[Fragment]:
        """Takes in the tokens that another engine has generated; gives what was said there.

        If it holds the answer's end, a stop string say, `finish_reason` is set and nothing is to follow.
        """
        fragments: list[Fragment] = []
        for token in tokens:
            fragments += self._take(token)
            if self._is_over():
                self._end("stop", fragments)
                break
        return fragments

    async def pieces(self, outputs: AsyncIterable[Output]) -> AsyncIterator[Piece]:
        """The answer as it becomes certain, a piece for every token.

        Raises:
            EngineError: the engine failed on this request.
            ClientGoneError: the request was cancelled.
        """
        async for output in outputs:
            if output.error is not None:  # first: a piece before it would open the answer
                raise output.error
            if output.finish is FinishReason.CANCELLED:
                raise ClientGoneError("the request was cancelled")
            if output.finish is FinishReason.MOVED:
                return
            yield self._piece(output)
            if self.finish_reason is not None:
                return
        raise InternalError("the token stream ended without an end")

    def _piece(self, output: Output) -> Piece:
        fragments: list[Fragment] = []
        if output.token is not None and output.finish is not FinishReason.STOP:  # an end token is no text
            fragments = self._take(output.token)
        elif output.token is not None:
            self.num_tokens += 1
        if self._is_over():
            self._end("stop", fragments)
        elif output.finish is not None:
            text = self._matcher.push(self._detokenizer.flush())
            fragments += self._parse(text + self._matcher.flush())
            self._end("stop" if self._is_over() else _REASONS[output.finish], fragments)
        if output.logprobs is None or output.token is None:
            return Piece(fragments)
        return Piece(fragments, (output.token, output.logprobs))

    def _take(self, token: int) -> list[Fragment]:
        self.num_tokens += 1
        self.tokens.append(token)
        return self._parse(self._matcher.push(self._detokenizer.push(token)))

    def _is_over(self) -> bool:
        """True if nothing that follows belongs to the answer."""
        return self._matcher.is_stopped or (self._parser is not None and self._parser.is_complete)

    def _parse(self, text: str) -> list[Fragment]:
        if not text:
            return []
        return [Content(text)] if self._parser is None else self._parser.push(text)

    def _end(self, reason: str, fragments: list[Fragment]) -> None:
        if self._parser is not None:
            fragments += self._parser.flush()
            if self._parser.has_calls and reason == "stop":
                reason = "tool_calls"
        self.finish_reason = reason
