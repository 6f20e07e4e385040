"""How often each token has come, kept as a sequence grows; penalties are computed from it. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class TokenCounts:
    """Distinct tokens and their numbers, as arrays to index with; a token is added in O(1)."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._tokens = np.empty(16, dtype=np.int64)
        self._counts = np.empty(16, dtype=np.float32)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """(n,): the distinct tokens; those that were removed again are among them."""
        return self._tokens[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """(n,): how often each came, 0 if it was removed as often."""
        return self._counts[: len(self._places)]

    def add(self, tokens: Iterable[int]) -> None:
        """Counts these tokens."""
        for token in tokens:
            place = self._places.get(token)
            if place is None:
                place = self._places[token] = len(self._places)
                if place == len(self._tokens):
                    self._tokens = np.resize(self._tokens, 2 * place)
                    self._counts = np.resize(self._counts, 2 * place)
                self._tokens[place], self._counts[place] = token, 0
            self._counts[place] += 1

    def remove(self, tokens: Iterable[int]) -> None:
        """Takes tokens back that were added."""
        for token in tokens:
            self._counts[self._places[token]] -= 1


class PenaltyState:
    """The counts that one sequence's penalties go by; follows its tokens."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_seen = 0
        self.answer = TokenCounts()
        """Of generated tokens: for frequency and presence."""
        self.text = TokenCounts()
        """Of prompt and answer: for repetition."""

    def follow(self, tokens: list[int]) -> None:
        """Takes in what `tokens`, prompt and answer, has got since the last call."""
        self.text.add(tokens[self._num_seen :])
        self.answer.add(tokens[max(self._num_seen, self._num_prompt_tokens) :])
        self._num_seen = len(tokens)

    def suppose(self, token: int) -> None:
        """Adds a token that is only guessed, until :meth:`withdraw`."""
        self.text.add([token])
        self.answer.add([token])

    def withdraw(self, tokens: Iterable[int]) -> None:
        """Takes guessed tokens back."""
        tokens = list(tokens)
        self.text.remove(tokens)
        self.answer.remove(tokens)
