"""Speculation without a second model: what followed the latest tokens the last time they came. No torch here.

Answers that repeat their prompt (edited text, code, quotations) repeat it for many tokens in a row. A draft
costs rows in a step, nearly free on few rows, and is checked token by token against what is really drawn:
the answer is the same with and without (Saxena 2023; the draw's exactness: see `Scheduler`).

How long drafts are is learned per sequence: one that is accepted whole doubles the next, one that is refused
whole halves it, and refused drafts of the least length put a pause before the next, which doubles too.
"""

from __future__ import annotations

# Tokens that must be the same for what followed them to be proposed.
NGRAM = 3
TOKEN_BITS = 24  # of a token id
FIRST_DRAFT = 3
MAX_PAUSE = 64  # steps


class Lookup:
    """The drafts of one sequence."""

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}  # where each n-gram ended last
        self._num_indexed = 0
        self._length = FIRST_DRAFT
        self._pause = 0  # steps to wait after the next refusal
        self._wait = 0

    def propose(self, tokens: list[int], limit: int) -> tuple[int, ...]:
        """At most `limit` tokens that may follow `tokens`, which grows from call to call; often none."""
        if limit < 1 or len(tokens) <= NGRAM:
            return ()
        if self._wait:
            self._wait -= 1
            return ()
        # The latest n-gram itself stays out: it would be found as its own precedent.
        for end in range(max(self._num_indexed, NGRAM), len(tokens)):
            self._ends[_key(tokens[end - NGRAM : end])] = end
        self._num_indexed = len(tokens)
        start = self._ends.get(_key(tokens[-NGRAM:]))
        if start is None:
            return ()
        draft = tokens[start : start + min(limit, self._length)]
        period = len(tokens) - start
        while len(draft) < min(limit, self._length):  # it reaches into itself: what repeats goes on repeating
            draft.append(draft[len(draft) - period])
        return tuple(draft)

    def learn(self, num_drafted: int, num_accepted: int, longest: int) -> None:
        """Hears what became of a draft; `longest` bounds the next ones."""
        if num_accepted:
            self._pause = 0
            self._length = min(2 * self._length, longest) if num_accepted == num_drafted else num_accepted
        elif self._length > 1:
            self._length //= 2
        else:
            self._wait = self._pause = min(2 * self._pause + 1, MAX_PAUSE)


def _key(ngram: list[int]) -> int:
    """An n-gram as one number, which takes a third of a tuple's memory."""
    key = 0
    for token in ngram:
        key = key << TOKEN_BITS | token
    return key
