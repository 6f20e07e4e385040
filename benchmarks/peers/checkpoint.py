"""Writes a checkpoint of Qwen2-0.5B's shape with random weights: 494 M parameters, bf16, the same every time.

The tokenizer is a real byte-level BPE of 151,936 tokens: bytes, pairs of letters, and pairs of such pairs.
There is no end token, so that nothing ends an answer but its length.
"""

from __future__ import annotations

import itertools
import json
import string
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

NAME = "qwen2-0.5b-random"
VERSION = "1"
SEED = 20_260
STD = 0.02  # of Qwen2's own initialisation: activations stay finite through 24 layers
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "initializer_range": STD,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
LAYERS, HIDDEN, MLP = CONFIG["num_hidden_layers"], CONFIG["hidden_size"], CONFIG["intermediate_size"]
KV_WIDTH = 2 * 64
_STRIDE = 3  # walks all pairs of pairs once: it has no factor in common with their number, 676 * 676


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, by Hugging Face's names."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (CONFIG["vocab_size"], HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, width in (("q", HIDDEN), ("k", KV_WIDTH), ("v", KV_WIDTH)):
            found[f"{prefix}self_attn.{name}_proj.weight"] = (width, HIDDEN)
            found[f"{prefix}self_attn.{name}_proj.bias"] = (width,)
        found[f"{prefix}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        found[f"{prefix}mlp.gate_proj.weight"] = (MLP, HIDDEN)
        found[f"{prefix}mlp.up_proj.weight"] = (MLP, HIDDEN)
        found[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, MLP)
        found[f"{prefix}input_layernorm.weight"] = (HIDDEN,)
        found[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    found["model.norm.weight"] = (HIDDEN,)
    return found


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    found = {}
    for name, shape in shapes().items():
        if "norm" in name:
            found[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            found[name] = (torch.randn(shape, generator=generator) * STD).to(torch.bfloat16)
    return found


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token to id, and the merges that make the tokens beyond single bytes."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = string.ascii_lowercase
    merges = [(a, b) for a, b in itertools.product(letters, letters)]
    pairs = [a + b for a, b in merges]
    count = len(pairs)
    for index in range(CONFIG["vocab_size"] - len(tokens) - count):
        place = index * _STRIDE % (count * count)
        merges.append((pairs[place // count], pairs[place % count]))
    tokens += [a + b for a, b in merges]
    return {token: index for index, token in enumerate(tokens)}, merges


def _write_tokenizer(directory: Path) -> None:
    tokens, merges = vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONFIG["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def ensure_checkpoint(folder: Path) -> Path:
    """The checkpoint's folder inside `folder`, written if it is not there."""
    directory = folder / NAME
    marker = directory / "written"
    if marker.is_file() and marker.read_text("ascii") == VERSION:
        return directory
    print(f"writing {directory} (1 GB of random weights, once)", file=sys.stderr)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    _write_tokenizer(directory)
    save_file(_weights(), directory / "model.safetensors", metadata={"format": "pt"})
    marker.write_text(VERSION, "ascii")
    return directory
