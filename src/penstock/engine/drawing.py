"""From a step's logits to its tokens: log-probabilities of the model's own, edits, then the draw."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from penstock.engine.penalties import PenaltyState
from penstock.engine.plan import Chunk, StepPlan
from penstock.engine.sampler import Sampler
from penstock.engine.sampling import Masks, SamplingParams, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one step's rows that draw have brought."""

    tokens: list[int | None]
    """None for a row that holds no distribution."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By row, where they were asked for."""


def fill_masks(plan: StepPlan, vocab_size: int) -> Masks | None:
    """Asks the grammars of a plan; None if it has none. It needs no logits: it may run beside the pass.

    Raises:
        EngineError: an answer is not of its grammar.
    """
    rows: list[int] = []
    chunks: list[Chunk] = []
    first = 0
    for chunk in plan.sampling_chunks:
        if chunk.sequence.constraint is not None:
            rows += range(first, first + chunk.num_draws)
            chunks.append(chunk)
        first += chunk.num_draws
    if not chunks:
        return None
    allowed = np.zeros((len(rows), -(-vocab_size // 32)), dtype=np.int32)
    first = 0
    for chunk in chunks:
        sequence, part = chunk.sequence, allowed[first : first + chunk.num_draws]
        assert sequence.constraint is not None
        sequence.constraint.fill(part, sequence.answer, chunk.draft)
        first += chunk.num_draws
    return Masks(np.asarray(rows, dtype=np.int32), allowed)


@torch.inference_mode()
def draw(plan: StepPlan, logits: Tensor, sampler: Sampler, masks: Masks | None = None) -> Drawn:
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
        if sequence.sampling.has_edits:
            edited.append((first, chunk))
    raw = logits[asked].log_softmax(-1) if asked else None
    for first, chunk in edited:
        _edit(logits[first : first + chunk.num_draws], chunk)
    tokens = sampler(logits, params, positions, masks)
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


def _edit(logits: Tensor, chunk: Chunk) -> None:
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
