"""Tiny random checkpoints of every supported architecture, written by transformers, the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SHAPE = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class Case:
    """One checkpoint: a family and what differs from SHAPE."""

    name: str
    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    shard_size: str = "5GB"

    def __str__(self) -> str:
        return self.name


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """A rope_parameters entry of config.json."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


LLAMA3 = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)

CASES = [
    Case("llama", "llama"),
    Case("llama-tied", "llama", {"tie_word_embeddings": True}),
    Case("llama-biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Case("llama-mha", "llama", {"num_key_value_heads": 4}),
    Case("llama-linear-rope", "llama", rope("linear", factor=4.0)),
    Case("llama-llama3-rope", "llama", LLAMA3),
    Case("llama-dynamic-rope", "llama", rope("dynamic", factor=2.0)),
    Case("llama-yarn-rope", "llama", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    Case("llama-sharded", "llama", shard_size="60KB"),
    Case("mistral", "mistral", {"sliding_window": None}),
    Case("mistral-window", "mistral", {"sliding_window": 9}),
    Case("qwen2", "qwen2"),
    Case("qwen2-gqa7-odd", "qwen2", {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 42,
                                     "head_dim": 6, "intermediate_size": 33, "vocab_size": 97}),
    Case("qwen2-window", "qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    Case("qwen2-tied", "qwen2", {"tie_word_embeddings": True}),
    Case("qwen3", "qwen3"),
    Case("qwen3-wide-heads", "qwen3", {"head_dim": 20, "tie_word_embeddings": True}),
    Case("qwen3-mqa", "qwen3", {"num_key_value_heads": 1, "attention_bias": True}),
    Case("qwen3-yarn-rope", "qwen3", rope("yarn", factor=2.0, original_max_position_embeddings=128,
                                          beta_fast=16.0, beta_slow=2.0)),
]  # fmt: skip


def write_checkpoint(case: Case, directory: Path, seed: int = 0) -> Any:
    """Writes the case's checkpoint into `directory` and returns transformers' model of it, in float32."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(case.family, **(SHAPE | case.changes))
    config.architectures = [ARCHITECTURES[case.family]]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also biases and norms, which start at 0 and 1
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model.save_pretrained(directory, max_shard_size=case.shard_size)
    return model


def generated_by_transformers(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """The oracle's continuation, end tokens not heeded."""
    ids = torch.tensor([prompt])
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
