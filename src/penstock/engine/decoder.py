"""One generic decoder for every supported family, configured by a :class:`DecoderSpec`.

It works on a flat batch: tokens of all sequences of a step in one row, without padding. It knows
neither caches nor sequences; attention is handed in, and what adapters add to its products. The
operations are functional, so the lab trains the very decoder that the engine serves.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.engine.attention.contract import Attend
from penstock.engine.rope import Rotary, rotate
from penstock.engine.spec import DecoderSpec


class Adapt(Protocol):
    """Changes what a product of a layer gives."""

    def __call__(self, layer: int, projection: str, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What takes the place of `outputs` (rows, n), which `projection` made of `inputs` (rows, k).

        They may be changed in place.
        """
        ...


def unadapted(layer: int, projection: str, inputs: Tensor, outputs: Tensor) -> Tensor:
    """The model as it is."""
    return outputs


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """(..., size) -> (..., size), dtype kept."""
        wide = states.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(states.dtype)


class SelfAttention(nn.Module):
    """Fused q, k, v projection, optional norm on queries and keys, rotation, attention, output projection."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        self.qkv_proj = nn.Linear(spec.hidden_size, width, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.hidden_size, bias=spec.output_bias)
        self.q_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps) if spec.qk_norm else None

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, attend: Attend, adapt: Adapt) -> Tensor:
        """(num_tokens, hidden_size) -> (num_tokens, hidden_size)."""
        fused = adapt(self.layer, "qkv_proj", states, self.qkv_proj(states))
        heads = fused.view(states.shape[0], -1, self.head_dim)
        query, key, value = heads.split_with_sizes(
            (self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        attended = attend(self.layer, rotate(query, cos, sin), rotate(key, cos, sin), value)
        return adapt(self.layer, "o_proj", attended, self.o_proj(attended))


class GatedMLP(nn.Module):
    """silu(gate) * up, then down, with gate and up in one product (Shazeer 2020)."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gate_up_proj = nn.Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, states: Tensor, adapt: Adapt) -> Tensor:
        """(num_tokens, hidden_size) -> (num_tokens, hidden_size)."""
        gate, up = adapt(self.layer, "gate_up_proj", states, self.gate_up_proj(states)).chunk(2, dim=-1)
        gated = F.silu(gate) * up
        return adapt(self.layer, "down_proj", gated, self.down_proj(gated))


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and around a residual."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.attention = SelfAttention(spec, layer)
        self.post_attention_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = GatedMLP(spec, layer)

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, attend: Attend, adapt: Adapt) -> Tensor:
        """(num_tokens, hidden_size) -> (num_tokens, hidden_size)."""
        states = states + self.attention(self.input_norm(states), cos, sin, attend, adapt)
        out: Tensor = states + self.mlp(self.post_attention_norm(states), adapt)
        return out


class Decoder(nn.Module):
    """Token ids and positions in, hidden states out; :meth:`logits` applies the head where it is wanted."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.rotary = Rotary(spec.rope)
        self.layers = nn.ModuleList(DecoderLayer(spec, layer) for layer in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.tied_head:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, adapt: Adapt = unadapted) -> Tensor:
        """int64 (num_tokens,), int64 (num_tokens,) -> normed hidden states (num_tokens, hidden_size)."""
        states = self.embedding(tokens)
        cos, sin = self.rotary(positions, states.dtype)
        for layer in self.layers:
            states = layer(states, cos, sin, attend, adapt)
        out: Tensor = self.norm(states)
        return out

    def logits(self, states: Tensor) -> Tensor:
        """Rows of hidden states (n, hidden_size) -> float32 logits (n, vocab_size)."""
        out: Tensor = self.head(states)
        return out.float()
