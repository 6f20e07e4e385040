"""One encoder for BERT (Devlin et al. 2018), RoBERTa and XLM-RoBERTa, configured by an :class:`EncoderSpec`.

It works on a flat batch: the tokens of all texts in one row, without padding. Texts of equal length lie side
by side, so that attention is one call for each length and needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from penstock.engine.encoder_spec import EncoderSpec


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """A text, or a pair of texts, as its token ids."""

    tokens: Sequence[int]
    types: Sequence[int] | None = None
    """The segment of each token; None: all of the first."""


@dataclass(frozen=True, slots=True)
class EncoderBatch:
    """Texts in one row, shorter ones first."""

    order: list[int]
    """Which of the inputs comes first, second, ..."""
    starts: list[int]
    """Where each of them begins, in that order, and where the last one ends."""
    groups: list[tuple[int, int, int]]
    """(first row, number of texts, their length) of texts of equal length."""
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    """Rows of the table of positions."""
    types: NDArray[np.int64]


def build_encoder_batch(inputs: Sequence[EncoderInput], spec: EncoderSpec) -> EncoderBatch:
    """Lays texts side by side; each has between 1 and `spec.max_positions` tokens."""
    order = sorted(range(len(inputs)), key=lambda index: len(inputs[index].tokens))
    lengths = [len(inputs[index].tokens) for index in order]
    starts = [0, *np.cumsum(lengths).tolist()]
    groups, row = [], 0
    for length, members in groupby(lengths):
        count = sum(1 for _ in members)
        groups.append((row, count, length))
        row += count * length
    tokens = [np.asarray(inputs[index].tokens, dtype=np.int64) for index in order]
    # A model that knows one kind of segment has nothing to tell apart, whatever its tokenizer says.
    types = [
        np.zeros(length, dtype=np.int64)
        if (given := inputs[index].types) is None or spec.type_rows == 1
        else np.asarray(given, dtype=np.int64)
        for index, length in zip(order, lengths, strict=True)
    ]
    return EncoderBatch(
        order,
        starts,
        groups,
        np.concatenate(tokens),
        np.concatenate([_positions(one, spec) for one in tokens]),
        np.concatenate(types),
    )


def _positions(tokens: NDArray[np.int64], spec: EncoderSpec) -> NDArray[np.int64]:
    if spec.family == "bert":
        return np.arange(len(tokens), dtype=np.int64)
    # As RoBERTa was trained: padding inside a text has no position of its own.
    is_text = tokens != spec.pad_token_id
    positions: NDArray[np.int64] = np.cumsum(is_text) * is_text + spec.pad_token_id
    return positions


class EncoderAttention(nn.Module):
    """Every token of a text sees every other; q, k, v in one product."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.qkv_proj = nn.Linear(spec.hidden_size, 3 * spec.hidden_size)
        self.o_proj = nn.Linear(spec.hidden_size, spec.hidden_size)

    def forward(self, states: Tensor, groups: Sequence[tuple[int, int, int]]) -> Tensor:
        """(num_tokens, hidden_size) -> (num_tokens, hidden_size)."""
        qkv: Tensor = self.qkv_proj(states)
        attended = torch.empty_like(states)
        for start, count, length in groups:
            rows = slice(start, start + count * length)
            heads = qkv[rows].view(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
            attended[rows] = mixed.transpose(1, 2).reshape(count * length, -1)
        out: Tensor = self.o_proj(attended)
        return out


class EncoderLayer(nn.Module):
    """Attention and MLP, each around a residual and before a norm."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.attention = EncoderAttention(spec)
        self.attention_norm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size)
        self.mlp_norm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.activation = spec.activation

    def forward(self, states: Tensor, groups: Sequence[tuple[int, int, int]]) -> Tensor:
        """(num_tokens, hidden_size) -> (num_tokens, hidden_size)."""
        states = self.attention_norm(states + self.attention(states, groups))
        inner = self.up_proj(states)
        if self.activation == "relu":
            inner = F.relu(inner)
        else:
            inner = F.gelu(inner, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        out: Tensor = self.mlp_norm(states + self.down_proj(inner))
        return out


class Encoder(nn.Module):
    """Token ids in, hidden states out; :meth:`score` applies a cross-encoder's head."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.position_embedding = nn.Embedding(spec.position_rows, spec.hidden_size)
        self.type_embedding = nn.Embedding(spec.type_rows, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size, spec.layer_norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(spec) for _ in range(spec.num_layers))
        self.pooler = nn.Linear(spec.hidden_size, spec.hidden_size) if spec.scores else None
        self.head = nn.Linear(spec.hidden_size, 1) if spec.scores else None

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Hidden states of all tokens of the batch (num_tokens, hidden_size), in its order."""
        device = self.embedding.weight.device
        tokens, positions, types = (
            torch.from_numpy(array).to(device) for array in (batch.tokens, batch.positions, batch.types)
        )
        states = self.embedding(tokens) + self.position_embedding(positions) + self.type_embedding(types)
        states = self.norm(states)
        for layer in self.layers:
            states = layer(states, batch.groups)
        out: Tensor = states
        return out

    def score(self, states: Tensor) -> Tensor:
        """First tokens' states (n, hidden_size) -> float32 scores (n,), before the sigmoid."""
        assert self.pooler is not None
        assert self.head is not None
        out: Tensor = self.head(torch.tanh(self.pooler(states)))
        return out.float().squeeze(-1)
