"""Logits to token ids, vectorised over the rows of a step.

The draw is by inverse transform from one uniform number per row, a pure function of (seed, position):
it does not depend on the rest of the batch, survives preemption and needs no generator state.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from penstock.engine.sequence import SamplingParams

_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments everywhere (SplitMix64, Steele et al. 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & _MASK
    return ((state ^ (state >> 31)) >> 11) / (1 << 53)


def sample(
    logits: Tensor, params: SequenceOf[SamplingParams], positions: SequenceOf[int]
) -> list[int | None]:
    """Draws one token per row.

    Args:
        logits: float32 (n, vocab_size), left as it is.
        params: n sampling parameters.
        positions: n places of the new tokens in their sequences; with the seed they fix the draw.

    Returns:
        n token ids; None for a row that holds no distribution (NaN, or nothing finite above it).
    """
    likeliest, tokens_of = logits.max(-1)  # NaN wins every comparison here, so the maximum shows it
    is_sound: list[bool] = likeliest.isfinite().tolist()
    tokens: list[int | None] = [
        token if sound else None for token, sound in zip(tokens_of.tolist(), is_sound, strict=True)
    ]
    # A row's result must not depend on its neighbours: unfiltered rows invert one kind of distribution, all
    # together; filtered rows invert one that is sorted and cut to their own top-k, each by itself.
    drawn = [row for row, param in enumerate(params) if is_sound[row] and not param.is_greedy]
    plain = [row for row in drawn if not params[row].has_filters]
    if plain:
        scaled = logits[plain].double() / _column([params[row].temperature for row in plain], logits)
        uniforms = _column([uniform(params[row].seed, positions[row]) for row in plain], logits)
        chosen = _invert(scaled.softmax(-1), uniforms).squeeze(-1).tolist()
        for row, token in zip(plain, chosen, strict=True):
            tokens[row] = token
    for row in set(drawn) - set(plain):
        tokens[row] = _draw_filtered(logits[row], params[row], uniform(params[row].seed, positions[row]))
    return tokens


def _draw_filtered(logits: Tensor, param: SamplingParams, at: float) -> int:
    """Draws from one row (vocab_size,) through its filters, at the uniform number `at`."""
    size = logits.shape[-1]
    if param.top_k and param.top_k < size:
        kept, order = logits.topk(param.top_k)
    else:
        kept, order = logits.sort(descending=True, stable=True)
    weights = (kept.double() / param.temperature).softmax(-1)
    before = weights.cumsum(-1) - weights
    # The likeliest token always stays, also with top_p 0, which clients send to mean greedy.
    outside = (before >= param.top_p) | (weights < weights[0] * param.min_p)
    outside[0] = False
    chosen = _invert(weights.masked_fill(outside, 0.0)[None], _column([at], logits))
    return int(order[chosen].item())


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
