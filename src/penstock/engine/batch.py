"""A step plan as tensors: one flat row of tokens, no padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penstock.engine.scheduler import StepPlan


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one forward pass. T tokens, S sequences, in the plan's order."""

    tokens: Tensor
    """int64 (T,)"""
    positions: Tensor
    """int64 (T,): place of each token in its own sequence, from 0."""
    slots: Tensor
    """int64 (T,): where each token's key and value go: block * block_size + offset."""
    query_starts: tuple[int, ...]
    """S + 1 offsets into the flat row: sequence s owns rows [query_starts[s], query_starts[s + 1])."""
    context_slots: tuple[Tensor, ...]
    """Per sequence, int64 (context,): the slots of all its positions up to this step's last, in order."""
    logit_rows: Tensor
    """int64 (num_sampled,): rows whose hidden state gives a new token."""


def build_batch(plan: StepPlan, block_size: int, device: torch.device) -> Batch:
    """Turns a plan with at least one chunk into tensors on `device`; the plan is left as it is."""
    tokens: list[int] = []
    positions, slots, contexts = [], [], []
    starts, rows = [0], []
    offsets = np.arange(block_size, dtype=np.int64)
    for chunk in plan.chunks:
        end = chunk.start + chunk.count
        tokens += chunk.sequence.tokens[chunk.start : end]
        blocks = np.asarray(chunk.sequence.block_table, dtype=np.int64)
        context = (blocks[:, None] * block_size + offsets).reshape(-1)[:end]
        positions.append(np.arange(chunk.start, end, dtype=np.int64))
        slots.append(context[chunk.start :])
        contexts.append(torch.from_numpy(context).to(device))
        starts.append(len(tokens))
        if chunk.samples:
            rows.append(len(tokens) - 1)
    return Batch(
        tokens=torch.tensor(tokens, dtype=torch.int64, device=device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        slots=torch.from_numpy(np.concatenate(slots)).to(device),
        query_starts=tuple(starts),
        context_slots=tuple(contexts),
        logit_rows=torch.tensor(rows, dtype=torch.int64, device=device),
    )
