"""The attention contract: what a backend promises, and what the decoder may assume.

Ownership: a backend owns the KV cache tensors, the block pool owns which blocks of them belong to whom,
and a :class:`~penstock.engine.batch.Batch` says which slots this step writes and reads.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from penstock.engine.batch import Batch


class Attend(Protocol):
    """Attention of one step, bound to its batch; called once per layer, in any order of layers."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keeps `key` and `value` of this step's tokens, then attends causally.

        Args:
            layer: index of the layer, from 0.
            query: (num_tokens, num_heads, head_dim), rotated.
            key, value: (num_tokens, num_kv_heads, head_dim), key rotated.

        Returns:
            (num_tokens, num_heads * head_dim), dtype of `query`. Each token sees the tokens of its own
            sequence at positions up to its own, within the layer's window; nothing of other sequences.
        """
        ...


class AttentionBackend(Protocol):
    """A KV cache with a way to attend over it."""

    def bind(self, batch: Batch) -> Attend:
        """The attention of one step. `batch` must live until the step is over."""
        ...
