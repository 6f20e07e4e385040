"""The wire shapes of an answer: one contract, and its two implementations, chat and text completions."""

from __future__ import annotations

import time
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from penstock.base.ids import new_id
from penstock.protocol.chat import AnswerMessage, ChatChunk, ChatCompletion, Choice, ChunkChoice, Delta
from penstock.protocol.completions import Completion, CompletionChoice
from penstock.protocol.usage import Usage

_encode = msgspec.json.Encoder().encode


class Shape(Protocol):
    """Encodes one answer, whole or in pieces; every method returns JSON without line ends."""

    def opening(self) -> bytes | None:
        """The event before the first text, if the dialect has one."""
        ...

    def piece(self, text: str) -> bytes:
        """A piece of text."""
        ...

    def finish(self, reason: str) -> bytes:
        """The end of the text."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The tokens used, sent where the client asked for them."""
        ...

    def whole(self, text: str, reason: str, usage: Usage) -> bytes:
        """An answer that is not streamed."""
        ...


class ChatShape:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        self._model = model
        self._id = new_id("chatcmpl")
        self._created = int(time.time())
        self._no_usage: UnsetType | None = None if include_usage else UNSET

    def opening(self) -> bytes:
        """The chunk that names the role."""
        return self._chunk(Delta(role="assistant", content=""))

    def piece(self, text: str) -> bytes:
        """See Shape."""
        return self._chunk(Delta(content=text))

    def finish(self, reason: str) -> bytes:
        """See Shape."""
        return self._chunk(Delta(), reason)

    def usage(self, usage: Usage) -> bytes:
        """See Shape."""
        return _encode(
            ChatChunk(id=self._id, created=self._created, model=self._model, choices=[], usage=usage)
        )

    def whole(self, text: str, reason: str, usage: Usage) -> bytes:
        """See Shape."""
        choice = Choice(message=AnswerMessage(content=text), finish_reason=reason)
        return _encode(
            ChatCompletion(
                id=self._id, created=self._created, model=self._model, choices=[choice], usage=usage
            )
        )

    def _chunk(self, delta: Delta, reason: str | None = None) -> bytes:
        choice = ChunkChoice(delta=delta, finish_reason=reason)
        return _encode(
            ChatChunk(
                id=self._id, created=self._created, model=self._model, choices=[choice], usage=self._no_usage
            )
        )


class CompletionShape:
    """text_completion, whole and streamed."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        self._model = model
        self._id = new_id("cmpl")
        self._created = int(time.time())
        self._no_usage: UnsetType | None = None if include_usage else UNSET

    def opening(self) -> None:
        """A text completion opens with its text."""

    def piece(self, text: str) -> bytes:
        """See Shape."""
        return self._completion([CompletionChoice(text=text)], self._no_usage)

    def finish(self, reason: str) -> bytes:
        """See Shape."""
        return self._completion([CompletionChoice(text="", finish_reason=reason)], self._no_usage)

    def usage(self, usage: Usage) -> bytes:
        """See Shape."""
        return self._completion([], usage)

    def whole(self, text: str, reason: str, usage: Usage) -> bytes:
        """See Shape."""
        return self._completion([CompletionChoice(text=text, finish_reason=reason)], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> bytes:
        return _encode(
            Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
        )
