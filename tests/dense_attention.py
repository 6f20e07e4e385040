"""Causal attention without a cache, by PyTorch: an oracle for ours."""

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
        out = F.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), is_causal=True, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(self.num_sequences * self.length, -1)

    def _split(self, states: Tensor) -> Tensor:
        """(num_sequences * length, heads, d) -> (num_sequences, heads, length, d)."""
        return states.view(self.num_sequences, self.length, *states.shape[1:]).transpose(1, 2)
