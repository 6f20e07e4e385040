"""Rotary frequencies against transformers, kind by kind."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from penstock.base.errors import CheckpointError
from penstock.engine.rope import KINDS, RopeSpec, Rotary, rotate

HEAD_DIM = 32
LENGTH = 512
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 128},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 0.8},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 128, "mscale": 1.0,
     "mscale_all_dim": 0.707},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "beta_fast": 8.0,
     "beta_slow": 0.5, "truncate": False},
]  # fmt: skip


def config_of(scaling: dict[str, object], theta: float) -> LlamaConfig:
    """A config with that scaling."""
    return LlamaConfig(
        hidden_size=HEAD_DIM * 2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_theta": theta, **scaling},
    )


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: str(scaling["rope_type"]))
def test_angles_equal_transformers_at_every_position(scaling: dict[str, object], theta: float) -> None:
    """Cosines and sines, the yarn factor included, up to the trained length."""
    config = config_of(scaling, theta)
    oracle = LlamaRotaryEmbedding(config)
    spec = RopeSpec.from_config(config.to_dict(), HEAD_DIM)
    positions = torch.arange(LENGTH)
    cos, sin = Rotary(spec)(positions, torch.float32)
    expected_cos, expected_sin = oracle(torch.zeros(1), positions[None])
    torch.testing.assert_close(cos[:, 0], expected_cos[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(sin[:, 0], expected_sin[0], atol=2e-5, rtol=0)


def test_every_kind_is_compared() -> None:
    """A new kind needs its line above."""
    assert {scaling["rope_type"] for scaling in SCALINGS} == set(KINDS)


def test_rotation_equals_transformers() -> None:
    """By halves, not by neighbours."""
    spec = RopeSpec(HEAD_DIM)
    positions = torch.tensor([0, 1, 77, 300])
    states = torch.randn(4, 3, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    cos, sin = Rotary(spec)(positions, torch.float32)
    expected, _ = apply_rotary_pos_emb(
        states.transpose(0, 1)[None], states.transpose(0, 1)[None], cos[:, 0][None], sin[:, 0][None]
    )
    torch.testing.assert_close(rotate(states, cos, sin), expected[0].transpose(0, 1))


def test_position_zero_is_not_rotated() -> None:
    """The identity, exactly."""
    states = torch.randn(1, 2, HEAD_DIM)
    assert torch.equal(rotate(states, *Rotary(RopeSpec(HEAD_DIM))(torch.tensor([0]), torch.float32)), states)


def test_bfloat16_angles_are_computed_in_float32() -> None:
    """Positions 256 and 257 are one number in bfloat16."""
    cos, _ = Rotary(RopeSpec(HEAD_DIM))(torch.tensor([256, 257]), torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    assert not torch.equal(cos[0], cos[1])


@pytest.mark.parametrize("kind", ["longrope", "su", "mrope", "ntk"])
def test_unknown_kinds_are_refused_with_the_known_ones(kind: str) -> None:
    """Unscaled they would load and answer nonsense."""
    with pytest.raises(CheckpointError, match=f"'{kind}'.*yarn") as caught:
        RopeSpec.from_config({"rope_scaling": {"type": kind}}, HEAD_DIM)
    assert caught.value.param == "rope_scaling"
