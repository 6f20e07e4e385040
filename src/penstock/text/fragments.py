"""What an answer's text is made of: content, reasoning, tool calls; and what tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model thinks in, before its content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool is called; its arguments follow."""

    index: int
    """Of the call in the answer, from 0."""
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON of a call's arguments."""

    index: int
    text: str


Fragment = Content | Reasoning | CallStart | CallArguments


class OutputParser(Protocol):
    """Takes an answer apart as it comes.

    The fragments, adjacent ones of a kind joined, do not depend on how the text was cut into pieces. Text
    that is no well-formed call comes out as content, unchanged.
    """

    @property
    def has_calls(self) -> bool:
        """True once a call has begun."""
        ...

    def push(self, text: str) -> list[Fragment]:
        """Takes a piece of text; returns what is certain now."""
        ...

    def flush(self) -> list[Fragment]:
        """Returns what was held back; the text is over."""
        ...
