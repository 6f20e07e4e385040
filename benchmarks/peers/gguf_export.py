"""Converts the checkpoint to GGUF with Q8_0 matrices, for llama.cpp; runs in its environment.

usage: python -m peers.gguf_export CHECKPOINT OUT.gguf
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 values of every bf16 tensor of a safetensors file, which is read by hand:
    numpy has no bf16."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            words = np.frombuffer(file.read(end - begin), dtype=np.uint16).astype(np.uint32)
            yield name, (words << 16).view(np.float32).reshape(entry["shape"])


def _describe(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_name("random weights in the shape of Qwen2-0.5B")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def _add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(model["vocab"]))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])


def export(checkpoint: Path, out: Path) -> None:
    """Writes `out`: matrices as Q8_0, biases and norms as float32, the head tied."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN2])
    _describe(writer, config)
    _add_tokenizer(writer, checkpoint / "tokenizer.json")
    for name, values in _tensors(checkpoint / "model.safetensors"):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        if values.ndim == 1:
            writer.add_tensor(target, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
