"""From the hidden states of a text's tokens to one vector for the text."""

from __future__ import annotations

from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.engine.readout import StepView

Vector = NDArray[np.float32]
"""(hidden_size,), not normalised."""


class Pooling(Enum):
    """Which states make the vector (Reimers and Gurevych 2019)."""

    MEAN = "mean"
    """The mean over all tokens."""
    LAST = "last"
    """The last token's: in a decoder the only one that has seen the whole text."""
    CLS = "cls"
    """The first token's, which encoders are trained to read the text with."""


class Pooled:
    """Pools a prompt's states as a decoder computes them, chunk by chunk. A Readout."""

    def __init__(self, pooling: Pooling, num_tokens: int) -> None:
        """`num_tokens` of the prompt, at least one."""
        self._pooling = pooling
        self._num_tokens = num_tokens
        # What is not needed counts as seen, so that it may come from the prefix cache.
        self._num_read = num_tokens - 1 if pooling is Pooling.LAST else 0
        self._total: Tensor | None = None

    @property
    def num_read(self) -> int:
        """See Readout."""
        return self._num_read

    @property
    def num_wanted(self) -> int:
        """See Readout."""
        return 1 if self._pooling is Pooling.CLS else self._num_tokens

    @property
    def vector(self) -> Vector:
        """The text's vector; holds once all wanted positions were read."""
        assert self._total is not None
        assert self._num_read >= self.num_wanted
        count = self._num_tokens if self._pooling is Pooling.MEAN else 1
        return (self._total / count).float().cpu().numpy()

    def read(self, view: StepView, row: int, start: int, count: int) -> None:
        """See Readout."""
        end = start + count
        if end <= self._num_read:
            return
        states: Tensor = view.states(row + self._num_read - start, row + count)
        # float64, so that the sum does not depend on where the prompt was cut into chunks.
        part = states.sum(0, dtype=torch.float64)
        self._total = part if self._total is None else self._total + part
        self._num_read = end


def pool(states: Tensor, pooling: Pooling) -> Tensor:
    """States of all tokens of a text (num_tokens, hidden_size) -> float32 (hidden_size,)."""
    if pooling is Pooling.MEAN:
        return states.float().mean(0)
    return states[-1 if pooling is Pooling.LAST else 0].float()
