"""Sequences in a fixed order: the queue, the running set, the list of deadlines. No torch here."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from penstock.engine.sequence import Sequence


class Ranking:
    """A sorted set of sequences; `key` must be unique and constant while a sequence is in it.

    To find a place takes O(log n), to make it a memory move: microseconds for any queue we allow.
    """

    def __init__(self, key: Callable[[Sequence], tuple[float, ...]]) -> None:
        self._key = key
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """From first to last, over a copy: sequences may leave meanwhile."""
        return iter(self._sequences.copy())

    def __contains__(self, sequence: Sequence) -> bool:
        place = self._place(sequence)
        return place < len(self._sequences) and self._sequences[place] is sequence

    @property
    def first(self) -> Sequence:
        """The one of the least key."""
        return self._sequences[0]

    @property
    def last(self) -> Sequence:
        """The one of the greatest key."""
        return self._sequences[-1]

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence in its place."""
        insort(self._sequences, sequence, key=self._key)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out. One that is not there is a defect."""
        assert sequence in self, f"sequence {sequence.id} is not ranked here"
        del self._sequences[self._place(sequence)]

    def _place(self, sequence: Sequence) -> int:
        return bisect_left(self._sequences, self._key(sequence), key=self._key)
