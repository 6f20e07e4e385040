"""What may be read from the model while it computes a prompt: the contract. No torch here.

A readout sees every position of its sequence's prompt once, in order, however the prompt is cut into chunks
and whatever is computed twice. Positions that it has not seen yet are not taken from the prefix cache.
"""

from __future__ import annotations

from typing import Any, Protocol


class StepView(Protocol):
    """The step that was computed last. Rows are its batch's; what is returned holds until the next call."""

    def logits(self, start: int, end: int) -> Any:
        """Tensor float32 (end - start, vocab_size)."""
        ...

    def states(self, start: int, end: int) -> Any:
        """Tensor float32 (end - start, hidden_size), after the last norm."""
        ...


class Readout(Protocol):
    """Collects something from a prompt's positions."""

    @property
    def num_read(self) -> int:
        """Positions seen; the next one is next, those before may come again and are passed over."""
        ...

    @property
    def num_wanted(self) -> int:
        """Positions to be seen in all, from 0 on."""
        ...

    def read(self, view: StepView, row: int, start: int, count: int) -> None:
        """Takes positions [start, start + count), which are rows [row, row + count) of `view`.

        `start` is at most `num_read`.
        """
        ...
