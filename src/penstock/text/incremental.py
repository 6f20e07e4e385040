"""Reading text that comes in pieces by a script that does not know of pieces.

A parser's script is a generator that reads one character, word or value after the other, and yields where the
text received so far ends. What it decides depends on the characters alone, so how the text was cut changes
nothing but when things come out. Every character is read once: what was read and may still turn out to be
plain text is held, and is given through if it does. Words that are looked for begin with a character that
does not occur in them again: where one breaks off, the search goes on at the next character, not further
back.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import TypeVar

from penstock.text.fragments import Fragment, merged

T = TypeVar("T")
Script = Generator[None, None, T]
"""Yields for more text; returns what was read."""


class IncrementalParser(ABC):
    """An OutputParser (see there) written as a script."""

    def __init__(self) -> None:
        self._text = ""  # the piece being read
        self._at = 0
        self._is_over = False
        self._held: list[str] = []
        self._out: list[Fragment] = []
        self._steps = self._script()

    @abstractmethod
    def _script(self) -> Script[None]:
        """Reads a whole answer."""

    @abstractmethod
    def _give(self, text: str) -> None:
        """Takes text that is none of the parser's own."""

    def push(self, text: str) -> list[Fragment]:
        """See OutputParser."""
        self._text, self._at = text, 0
        return self._advance()

    def flush(self) -> list[Fragment]:
        """See OutputParser."""
        self._text, self._at, self._is_over = "", 0, True
        return self._advance()

    def _advance(self) -> list[Fragment]:
        next(self._steps, None)
        out, self._out = self._out, []
        return merged(out) if len(out) > 1 else out

    def _next(self) -> Script[str]:
        """The next character, unread; "" at the end of the text."""
        while self._at == len(self._text):
            if self._is_over:
                return ""
            yield
        return self._text[self._at]

    def _run(self, pattern: re.Pattern[str]) -> Script[str]:
        """Reads and holds the longest run of characters that `pattern` (a class, repeated) matches."""
        run = []
        while (yield from self._next()):
            found = pattern.match(self._text, self._at)
            if found is None:
                break
            run.append(self._hold(found.end()))
            if self._at < len(self._text):
                break
        return "".join(run)

    def _word(self, *words: str) -> Script[str | None]:
        """Reads and holds one of `words`, none of which begins another; or None and what matches of one."""
        read = ""
        while (character := (yield from self._next())) and any(
            word.startswith(read + character) for word in words
        ):
            read += self._hold(self._at + 1)
            if read in words:
                return read
        return None

    def _until(self, character: str) -> Script[None]:
        """Gives the text through up to where `character` comes next."""
        while (yield from self._next()):
            found = self._text.find(character, self._at)
            end = len(self._text) if found < 0 else found
            if end > self._at:
                self._give(self._take(end))
            if found >= 0:
                return

    def _rest(self) -> Script[None]:
        """Gives everything through."""
        while (yield from self._next()):
            self._give(self._take(len(self._text)))

    def _hold(self, end: int) -> str:
        """Reads up to `end` and holds it."""
        text = self._take(end)
        self._held.append(text)
        return text

    def _release(self) -> None:
        """Gives through what was held."""
        held = self._drop()
        if held:
            self._give(held)

    def _drop(self) -> str:
        """Holds nothing any more; returns what was held."""
        held = "".join(self._held)
        self._held.clear()
        return held

    def _take(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at = end
        return text
