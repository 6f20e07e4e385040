"""What an answer's text is made of: content, reasoning, tool calls; and the contract of parsers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol


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

    The fragments, :func:`merged`, do not depend on how the text was cut into pieces. Text that is no
    well-formed call comes out as content, unchanged.
    """

    @property
    def has_calls(self) -> bool:
        """True once a call has begun."""
        ...

    @property
    def is_complete(self) -> bool:
        """True once nothing that follows can belong to the answer, as after a stop string; it is dropped."""
        ...

    def push(self, text: str) -> list[Fragment]:
        """Takes a piece of text; returns what is certain now."""
        ...

    def flush(self) -> list[Fragment]:
        """Returns what was held back; the text is over."""
        ...


class PlainText:
    """The parser of answers that are content and nothing else."""

    has_calls = False
    is_complete = False

    def push(self, text: str) -> list[Fragment]:
        """See OutputParser."""
        return [Content(text)] if text else []

    def flush(self) -> list[Fragment]:
        """See OutputParser; nothing is ever held back."""
        return []


def merged(fragments: Iterable[Fragment]) -> list[Fragment]:
    """The same with adjacent pieces of one text joined, in linear time."""
    whole: list[Fragment] = []
    for (kind, index), group in groupby(fragments, key=_text_of):
        if kind is CallStart:
            whole += group
            continue
        text = "".join(piece.text for piece in group if not isinstance(piece, CallStart))
        whole.append(kind(text) if index is None else CallArguments(index, text))
    return whole


def _text_of(fragment: Fragment) -> tuple[type[Any], int | None]:
    """Which text it is a piece of."""
    return type(fragment), fragment.index if isinstance(fragment, CallArguments) else None
