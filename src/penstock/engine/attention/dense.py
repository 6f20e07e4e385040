"""Causal attention without a cache, for training: equal-length sequences, gradients flow."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class DenseAttention:
    """An :class:`~penstock.engine.attention.contract.Attend` over `num_sequences` rows of `length` tokens.

    The flat batch is row-major: token t of sequence s is row ``s * length + t``. Sliding windows are not
    applied; train models without them.
    """

    def __init__(self, num_sequences: int, length: int) -> None:
        self.num_sequences = num_sequences
        self.length = length

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See the contract. Shapes: query (num_sequences * length, num_heads, head_dim)."""
        del layer
        split = [
            states.view(self.num_sequences, self.length, states.shape[1], states.shape[2]).transpose(1, 2)
            for states in (query, key, value)
        ]
        out = F.scaled_dot_product_attention(*split, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(self.num_sequences * self.length, -1)
