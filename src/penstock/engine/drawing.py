"""From a step's logits to its tokens: log-probabilities of the model's own, edits, then the draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from penstock.engine.penalties import PenaltyState
from penstock.engine.plan import Chunk, StepPlan
from penstock.engine.sampler import Sampler
from penstock.engine.sampling import Mask, SamplingParams, TokenLogprobs

Forbid = Callable[[Tensor, Mask], None]
"""Sets the logits (n, vocab_size) of tokens whose bit in the masks (n, words) is 0 to minus infinity."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one step's rows that draw have brought."""

    tokens: list[int | None]
    """None for a row that holds no distribution."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By row, where they were asked for."""


def forbid(logits: Tensor, masks: Mask) -> None:
    """See Forbid; on any device."""
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, : logits.shape[-1]]
    allowed = torch.from_numpy(bits).to(logits.device, torch.bool)
    logits.masked_fill_(~allowed, float("-inf"))


@torch.inference_mode()
def draw(plan: StepPlan, logits: Tensor, sampler: Sampler, forbid: Forbid = forbid) -> Drawn:
    """Draws a token for every row of `logits`, float32 (rows that draw, vocab_size), which it may change."""
    params: list[SamplingParams] = []
    positions: list[int] = []
    asked: list[int] = []
    edited: list[tuple[int, Chunk]] = []
    for chunk in plan.sampling_chunks:
        first, sequence = len(params), chunk.sequence
        params += [sequence.sampling] * chunk.num_draws
        positions += range(len(sequence.tokens), len(sequence.tokens) + chunk.num_draws)
        if sequence.sampling.logprobs is not None:
            asked += range(first, len(params))
        if sequence.sampling.has_edits or sequence.constraint is not None:
            edited.append((first, chunk))
    raw = logits[asked].log_softmax(-1) if asked else None
    for first, chunk in edited:
        _edit(logits[first : first + chunk.num_draws], chunk, forbid)
    tokens = sampler(logits, params, positions)
    if raw is None:
        return Drawn(tokens)
    return Drawn(tokens, dict(_logprobs(raw, asked, [params[row].logprobs or 0 for row in asked], tokens)))


def _logprobs(
    raw: Tensor, rows: SequenceOf[int], tops: SequenceOf[int], tokens: SequenceOf[int | None]
) -> Iterator[tuple[int, TokenLogprobs]]:
    """Pairs of row and log-probabilities, from those of the whole vocabulary (len(rows), vocab_size)."""
    drawn = torch.tensor([tokens[row] or 0 for row in rows], device=raw.device)
    chosen = raw.gather(-1, drawn[:, None]).squeeze(-1).tolist()
    best, order = (part.tolist() for part in raw.topk(min(max(tops), raw.shape[-1])))
    for i, (row, top) in enumerate(zip(rows, tops, strict=True)):
        yield row, TokenLogprobs(chosen[i], tuple(zip(order[i][:top], best[i][:top], strict=True)))


def _edit(logits: Tensor, chunk: Chunk, forbid: Forbid) -> None:
    """Changes the rows of one chunk, each as if its draft up to there were the text."""
    sequence, sampling = chunk.sequence, chunk.sequence.sampling
    state = sequence.penalties
    if sampling.has_penalties:
        if state is None:
            state = sequence.penalties = PenaltyState(sequence.num_prompt_tokens)
        state.follow(sequence.tokens)
    for i, row in enumerate(logits):
        if state is not None:
            if i:
                state.suppose(chunk.draft[i - 1])
            _penalise(row, state, sampling)
        for token, bias in sampling.logit_bias:
            row[token] += bias
        if sequence.num_generated + i < sampling.min_tokens:
            row[list(sampling.stop_token_ids)] = float("-inf")
    if state is not None:
        state.withdraw(chunk.draft)
    if sequence.constraint is not None:
        masks = np.zeros((len(logits), -(-logits.shape[-1] // 32)), dtype=np.int32)
        sequence.constraint.fill(masks, sequence.answer, chunk.draft)
        forbid(logits, masks)


def _penalise(row: Tensor, state: PenaltyState, sampling: SamplingParams) -> None:
    """Changes the logits (vocab_size,) of tokens that have come before."""
    if (factor := sampling.repetition_penalty) != 1.0:
        came = state.text.counts > 0
        tokens = torch.from_numpy(state.text.tokens[came]).to(row.device)
        values = row[tokens]
        row[tokens] = torch.where(values > 0, values / factor, values * factor)
    if sampling.frequency_penalty or sampling.presence_penalty:
        tokens = torch.from_numpy(state.answer.tokens).to(row.device)
        counts = torch.from_numpy(state.answer.counts).to(row.device)
        row[tokens] -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
