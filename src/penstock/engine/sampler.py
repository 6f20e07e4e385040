"""Logits to token ids, vectorised over the rows of a step.

The draw is by inverse transform from one uniform number per row, a pure function of (seed, position):
it does not depend on the rest of the batch, survives preemption and needs no generator state.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from penstock.engine.sampling import Masks, SamplingParams

_MASK = (1 << 64) - 1


class Sampler(Protocol):
    """Draws tokens as :func:`sample` does."""

    def __call__(
        self,
        logits: Tensor,
        params: SequenceOf[SamplingParams],
        positions: SequenceOf[int],
        masks: Masks | None = None,
    ) -> list[int | None]:
        """See :func:`sample`."""
        ...


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments everywhere (SplitMix64, Steele et al. 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & _MASK
    return ((state ^ (state >> 31)) >> 11) / (1 << 53)


def sample(
    logits: Tensor,
    params: SequenceOf[SamplingParams],
    positions: SequenceOf[int],
    masks: Masks | None = None,
) -> list[int | None]:
    """Draws one token per row.

    Args:
        logits: float32 (n, vocab_size); those of masked rows may change.
        params: n sampling parameters.
        positions: n places of the new tokens in their sequences; with the seed they fix the draw.
        masks: what may come, by row; None allows everything.

    Returns:
        n token ids; None for a row that holds no distribution (NaN, or nothing finite above it).
    """
    if masks is not None:
        _forbid(logits, masks)
    likeliest, tokens_of = logits.max(-1)  # NaN wins every comparison here, so the maximum shows it
    is_sound: list[bool] = likeliest.isfinite().tolist()
    tokens: list[int | None] = [
        token if sound else None for token, sound in zip(tokens_of.tolist(), is_sound, strict=True)
    ]
    drawn = [row for row, param in enumerate(params) if is_sound[row] and not param.is_greedy]
    # Rows without filters need no sorting, so they are drawn in the order of the vocabulary.
    for is_filtered, draw in ((False, _draw_plain), (True, _draw_filtered)):
        rows = [row for row in drawn if params[row].has_filters is is_filtered]
        if rows:
            chosen = draw(
                logits[rows],
                [params[row] for row in rows],
                _column([uniform(params[row].seed, positions[row]) for row in rows], logits),
            )
            for row, token in zip(rows, chosen.squeeze(-1).tolist(), strict=True):
                tokens[row] = token
    return tokens


def _forbid(logits: Tensor, masks: Masks) -> None:
    """Sets the logits of tokens that may not come to minus infinity."""
    bits = np.unpackbits(masks.allowed.view(np.uint8), axis=1, bitorder="little")[:, : logits.shape[-1]]
    allowed = torch.from_numpy(bits).to(logits.device, torch.bool)
    rows = torch.from_numpy(masks.rows).to(logits.device, torch.int64)
    logits[rows] = logits[rows].masked_fill(~allowed, float("-inf"))


def _draw_plain(logits: Tensor, params: SequenceOf[SamplingParams], uniforms: Tensor) -> Tensor:
    """Draws from rows (n, vocab_size) at the uniforms (n, 1) -> int64 (n, 1)."""
    scaled = logits.double() / _column([param.temperature for param in params], logits)
    return _invert(scaled.softmax(-1), uniforms)


def _draw_filtered(logits: Tensor, params: SequenceOf[SamplingParams], uniforms: Tensor) -> Tensor:
    """Draws from rows (n, vocab_size) through their filters at the uniforms (n, 1) -> int64 (n, 1)."""
    size = logits.shape[-1]
    top_k = [min(param.top_k or size, size) for param in params]
    if max(top_k) < size:
        kept, order = logits.topk(max(top_k))
    else:
        kept, order = logits.sort(descending=True, stable=True)
    rank = torch.arange(kept.shape[-1], device=logits.device)
    scaled = kept.double() / _column([param.temperature for param in params], logits)
    weights = scaled.masked_fill(rank >= _column(top_k, logits), float("-inf")).softmax(-1)
    before = weights.cumsum(-1) - weights
    outside = (before >= _column([param.top_p for param in params], logits)) | (
        weights < weights[:, :1] * _column([param.min_p for param in params], logits)
    )
    # The likeliest token always stays, also with top_p 0, which clients send to mean greedy.
    outside[:, 0] = False
    return order.gather(-1, _invert(weights.masked_fill(outside, 0.0), uniforms))


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse transform: float64 weights (n, vocab_size) and uniforms (n, 1) -> int64 (n, 1).

    float64, because over 150,000 tokens a float32 cumulative sum is off by more than a rare token's weight.
    """
    cumulative = weights.cumsum(-1)
    chosen = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # Rounding may reach past the last step of the staircase: end at the last token with any weight.
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1, keepdim=True)
    return torch.minimum(chosen, last)


def _column(values: SequenceOf[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
