"""What a decoder looks like, read once from a checkpoint's config.json.

One :class:`DecoderSpec` configures the one generic decoder for Llama, Qwen2/2.5, Qwen3 and Mistral.
Whatever the decoder cannot honour is refused here, by name, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.base.errors import CheckpointError
from penstock.engine.encoder_spec import SUPPORTED as ENCODERS
from penstock.engine.rope import RopeSpec

SUPPORTED = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# What transformers takes for Mistral and Qwen where config.json leaves the key out.
DEFAULT_WINDOW = 4096
DEFAULT_FULL_LAYERS = 28


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Shape and switches of a decoder-only transformer. Lengths are in tokens, sizes in elements."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope: RopeSpec
    windows: tuple[int | None, ...]
    """Per layer: how many of the latest positions a query sees, itself included; None for all."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    checkpoint_dtype: str = "float32"

    @property
    def context_length(self) -> int:
        """Tokens that can be served: yarn reaches its factor times the original length, whatever
        `max_position_embeddings` says (published recipes leave it); dynamic stays within the trained length.
        """
        rope = self.rope
        if rope.kind == "dynamic":
            return rope.original_max_positions
        if rope.kind == "yarn":
            return max(self.max_positions, int(rope.factor * rope.original_max_positions))
        return self.max_positions

    @property
    def num_parameters(self) -> int:
        """Number of weights, the tied head counted once (biases and norms included)."""
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        out = self.num_heads * self.head_dim
        layer = self.hidden_size * (width + out + 3 * self.intermediate_size + 2)
        layer += 2 * self.head_dim if self.qk_norm else 0
        layer += width if self.qkv_bias else 0
        layer += self.hidden_size if self.output_bias else 0
        layer += 2 * self.intermediate_size + self.hidden_size if self.mlp_bias else 0
        head = 0 if self.tied_head else self.vocab_size * self.hidden_size
        return self.num_layers * layer + self.vocab_size * self.hidden_size + head + self.hidden_size

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> DecoderSpec:
        """Reads a Hugging Face config.json.

        Raises:
            CheckpointError: unknown architecture, missing key, or a feature the decoder does not have.
        """
        architecture = (config.get("architectures") or [None])[0]
        family = SUPPORTED.get(str(architecture))
        if family is None:
            raise CheckpointError(
                f"architecture {architecture!r} is not supported; supported are, to generate, "
                f"{', '.join(sorted(SUPPORTED))} and, to embed or rerank, {', '.join(sorted(ENCODERS))}",
                param="architectures",
            )
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise CheckpointError(f"hidden_act {config['hidden_act']!r} is not supported", param="hidden_act")
        if config.get("quantization_config"):
            raise CheckpointError(
                "the checkpoint is stored quantised, which is not supported: give the original weights",
                param="quantization_config",
            )
        try:
            return _read(family, config)
        except KeyError as error:
            raise CheckpointError(f"config.json lacks {error.args[0]!r}", param=str(error.args[0])) from error
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(f"config.json has a value of the wrong type or range: {error}") from error


_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def _read(family: str, config: Mapping[str, Any]) -> DecoderSpec:
    for key in _COUNTS:
        if type(config[key]) is not int or config[key] < 1:
            raise CheckpointError(f"config.json: {key} is {config[key]!r}, not a positive number", param=key)
    heads: int = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    if heads % kv_heads:
        raise CheckpointError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    if head_dim % 2:
        raise CheckpointError(f"head_dim {head_dim} is odd: rotary embedding needs pairs", param="head_dim")
    llama_bias = bool(config.get("attention_bias", False))
    return DecoderSpec(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=config["max_position_embeddings"],
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=RopeSpec.from_config(config, head_dim),
        windows=_windows(family, config),
        # Qwen2 has biases on q, k, v by construction; Llama and Qwen3 by a switch that covers o as well.
        qkv_bias=family == "qwen2" or llama_bias,
        output_bias=family in ("llama", "qwen3") and llama_bias,
        mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        tied_head=bool(config.get("tie_word_embeddings", False)),
        checkpoint_dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )


def _windows(family: str, config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Sliding windows per layer: Mistral's on all, Qwen's from `max_window_layers` on if switched on."""
    layers: int = config["num_hidden_layers"]
    window = config.get("sliding_window", DEFAULT_WINDOW)
    if family == "llama" or window is None:
        return (None,) * layers
    if family == "mistral":
        return (window,) * layers
    if not config.get("use_sliding_window", False):
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", DEFAULT_FULL_LAYERS)
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
