"""Tokens to text as they come: whole characters only, and nothing past a stop string.

Invariant of :class:`Detokenizer`: the pieces it returns, joined, are what the tokenizer decodes from all ids
at once. (One exception: decoders with byte fallback turn a valid character into U+FFFD when broken bytes
follow it; what was released stays.) Invariant of :class:`StopMatcher`: the text it releases, joined, is the
text before the stop string that is complete first, whatever the pieces were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
# A character has at most four bytes and a token holds at least one: three more tokens decide whether the
# bytes before them are a character.
LOOKAHEAD = 3
# Text still broken after this many tokens is broken for good; holding all of it would stall the stream.
MAX_HELD_TOKENS = 8


class Decodes(Protocol):
    """The part of a tokenizer that a detokenizer needs."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out (or some of them, see `Tokenizer.showing`)."""
        ...

    def has_text(self, token: int) -> bool:
        """False for what :meth:`decode` leaves out wherever it is."""
        ...


class Detokenizer:
    """Incremental decoding of one sequence.

    It decodes a short window twice, with and without the new tokens, and releases the difference: decoders
    that treat the first token of a text specially (a leading space, say) then see the same left context both
    times. Tokens wait while the text ends in U+FFFD, which is what an unfinished character decodes to.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # tokens released last, as left context, then tokens held
        self._num_released = 0

    def push(self, token: int) -> str:
        """Takes one token; returns the text that is now certain, possibly none."""
        if not self._tokenizer.has_text(token):
            return ""  # nor is it left context
        self._window.append(token)
        before, after = self._decode(self._num_released), self._decode(len(self._window))
        if not after.startswith(before):  # byte fallback: broken bytes took released ones with them
            self._window, self._num_released = self._window[self._num_released :], 0
            before, after = "", self._decode(len(self._window))
        if len(after) > len(before) and not after.endswith(REPLACEMENT):
            return self._release(len(self._window))
        if len(self._window) - self._num_released > MAX_HELD_TOKENS:
            for cut in range(len(self._window) - LOOKAHEAD, self._num_released, -1):
                if after.startswith(self._decode(cut)):
                    return self._release(cut)
        return ""

    def flush(self) -> str:
        """The text of the tokens still held; broken characters show as U+FFFD."""
        return self._release(len(self._window))

    def _decode(self, count: int) -> str:
        return self._tokenizer.decode(self._window[:count]) if count else ""

    def _release(self, cut: int) -> str:
        """Text of the held tokens up to `cut`; these become the left context."""
        if cut == self._num_released:
            return ""
        text = self._decode(cut)[len(self._decode(self._num_released)) :]
        self._window = self._window[self._num_released :]
        self._num_released = cut - self._num_released
        return text


class StopMatcher:
    """Finds stop strings across pieces of text; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """Takes a piece; returns what can be released. After a stop string nothing is released any more."""
        if self.is_stopped or not self._stops:
            return "" if self.is_stopped else text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            _, start = min(found)  # the one that is complete first, not the one that begins first
            return text[:start]
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back; the text is over."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for size in range(min(len(text), self._longest - 1), 0, -1):
            tail = text[-size:]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0
