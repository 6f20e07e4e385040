"""config.json to a spec: what is read, what is assumed, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig

from penstock.base.errors import CheckpointError
from penstock.engine.spec import SUPPORTED, DecoderSpec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def spec_of(**changes: Any) -> DecoderSpec:
    """The spec of a small config with changes."""
    return DecoderSpec.from_config(LLAMA | changes)


def test_an_old_config_is_read_with_the_defaults_of_its_time() -> None:
    """Llama 1: no head_dim, no kv heads, no rope, no tie key."""
    spec = spec_of()
    assert (spec.num_kv_heads, spec.head_dim, spec.tied_head) == (4, 8, False)
    assert (spec.rope.kind, spec.rope.theta, spec.rms_norm_eps) == ("default", 10_000.0, 1e-6)
    assert spec.windows == (None,) * 4


def test_rope_is_read_from_either_generation_of_keys() -> None:
    """transformers 5 moved rope_theta and rope_scaling into rope_parameters."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64}
    old = spec_of(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    older = spec_of(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = spec_of(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert old == older == new
    assert new.rope.theta == 5e5


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_a_missing_key_is_named(key: str) -> None:
    """Instead of a KeyError somewhere."""
    config = {name: value for name, value in LLAMA.items() if name != key}
    with pytest.raises(CheckpointError, match=f"lacks '{key}'") as caught:
        DecoderSpec.from_config(config)
    assert caught.value.param == key


def test_a_rope_scaling_without_its_factor_is_named() -> None:
    """A scaled model served unscaled would answer nonsense."""
    with pytest.raises(CheckpointError, match="lacks 'factor'"):
        spec_of(rope_scaling={"rope_type": "yarn"})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": []}, "None"),
        ({"architectures": None}, "None"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"head_dim": 7}, "odd"),
        ({"partial_rotary_factor": 0.5}, "partial"),
        ({"num_attention_heads": "4"}, "not a positive number"),
        ({"num_attention_heads": 0}, "not a positive number"),
        ({"rope_theta": "often"}, "type or range"),
    ],
)
def test_what_the_decoder_cannot_honour_is_refused_by_name(changes: dict[str, Any], match: str) -> None:
    """Before a weight is read."""
    with pytest.raises(CheckpointError, match=match):
        spec_of(**changes)


@pytest.mark.parametrize(
    ("architecture", "changes", "windows"),
    [
        ("LlamaForCausalLM", {"sliding_window": 8}, (None,) * 4),
        ("MistralForCausalLM", {"sliding_window": 8}, (8,) * 4),
        ("MistralForCausalLM", {"sliding_window": None}, (None,) * 4),
        ("MistralForCausalLM", {}, (4096,) * 4),
        ("Qwen2ForCausalLM", {"sliding_window": 8}, (None,) * 4),
        ("Qwen2ForCausalLM", {"sliding_window": 8, "use_sliding_window": True}, (None,) * 4),
        (
            "Qwen3ForCausalLM",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 8),
        ),
        (
            "Qwen2ForCausalLM",
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (8, None, 8, None),
        ),
    ],
)
def test_windows_follow_each_familys_switches(
    architecture: str, changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    """The defaults for absent keys are those of transformers."""
    assert spec_of(architectures=[architecture], **changes).windows == windows


def test_absent_window_keys_mean_what_transformers_takes_them_to_mean(
    written: Callable[[str], Any],
) -> None:
    """A Qwen2 with windows on and more than 28 layers, its other window keys left out."""
    config = json.loads((written("qwen2").directory / "config.json").read_text("utf-8"))
    for key in ("layer_types", "sliding_window", "max_window_layers"):
        config.pop(key, None)
    config |= {"use_sliding_window": True, "num_hidden_layers": 30}
    oracle = AutoConfig.for_model(**config)
    spec = DecoderSpec.from_config(config)
    assert [window is not None for window in spec.windows] == [
        kind == "sliding_attention" for kind in oracle.layer_types
    ]
    assert spec.windows[-1] == oracle.sliding_window


def test_biases_follow_each_familys_rules() -> None:
    """Qwen2 has them on q, k, v without a switch; only Llama has a switch for the MLP."""
    biases = {
        name: (spec.qkv_bias, spec.output_bias, spec.mlp_bias)
        for name in SUPPORTED
        for spec in [spec_of(architectures=[name], mlp_bias=True)]
    }
    assert biases == {
        "LlamaForCausalLM": (False, False, True),
        "MistralForCausalLM": (False, False, False),
        "Qwen2ForCausalLM": (True, False, False),
        "Qwen3ForCausalLM": (False, False, False),
    }
    assert spec_of(attention_bias=True).output_bias


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 64),
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32}, 32),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_the_context_is_what_the_scaling_kind_can_serve(rope: dict[str, Any], expected: int) -> None:
    """Qwen2.5's recipe for long texts adds yarn and leaves max_position_embeddings at the original length."""
    config = LLAMA | {"max_position_embeddings": 64, "rope_parameters": rope}
    assert DecoderSpec.from_config(config).context_length == expected
