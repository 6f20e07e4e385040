"""Logits to token ids on the CPU kernels: one pass over a row where PyTorch needs a sort."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
from torch import Tensor

from penstock.engine.sampler import uniform
from penstock.engine.sampling import Masks, SamplingParams


class NativeSampler:
    """Draws from the same distributions as :func:`penstock.engine.sampler.sample`, at the same numbers."""

    def __init__(self, kernels: Any, threads: int) -> None:
        self._kernels = kernels
        self._pool = kernels.Pool(threads)

    def __call__(
        self,
        logits: Tensor,
        params: SequenceOf[SamplingParams],
        positions: SequenceOf[int],
        masks: Masks | None = None,
    ) -> list[int | None]:
        """See :func:`penstock.engine.sampler.sample`."""
        tokens: list[int] = self._kernels.sample(
            self._pool,
            logits.numpy(),
            np.asarray([param.temperature for param in params], dtype=np.float64),
            np.asarray([min(param.top_k or 0, logits.shape[-1]) for param in params], dtype=np.int32),
            np.asarray([param.top_p for param in params], dtype=np.float64),
            np.asarray([param.min_p for param in params], dtype=np.float64),
            np.asarray([uniform(p.seed, position) for p, position in zip(params, positions, strict=True)]),
            None if masks is None else masks.rows,
            None if masks is None else masks.allowed,
        )
        return [None if token < 0 else token for token in tokens]
