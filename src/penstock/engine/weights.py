"""Checkpoint names to parameters, as a table; safetensors in and out.

Hugging Face keeps q, k, v and gate, up apart; the decoder fuses them. A :class:`Part` says which rows of
which of our parameters a checkpoint tensor is, so reading copies into slices and writing reads from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from penstock.base.errors import CheckpointError
from penstock.engine.decoder import Decoder
from penstock.engine.spec import DecoderSpec

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Buffers that old checkpoints carry and that are computed here.
IGNORED = re.compile(r"rotary_emb\.inv_freq$")


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [start, start + rows) of parameter `name`; rows None means all of it."""

    name: str
    start: int = 0
    rows: int | None = None


def part_table(spec: DecoderSpec) -> dict[str, Part]:
    """Checkpoint tensor name -> part of our decoder, for every tensor a checkpoint of this spec must have."""
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    mlp = spec.intermediate_size
    fused = {
        "self_attn.q_proj": ("attention.qkv_proj", 0, q),
        "self_attn.k_proj": ("attention.qkv_proj", q, kv),
        "self_attn.v_proj": ("attention.qkv_proj", q + kv, kv),
        "mlp.gate_proj": ("mlp.gate_up_proj", 0, mlp),
        "mlp.up_proj": ("mlp.gate_up_proj", mlp, mlp),
    }
    whole = {
        "input_layernorm": "input_norm",
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.o_proj": "attention.o_proj",
        "mlp.down_proj": "mlp.down_proj",
    }
    if spec.qk_norm:
        whole |= {"self_attn.q_norm": "attention.q_norm", "self_attn.k_norm": "attention.k_norm"}
    biases = {
        "attention.qkv_proj": spec.qkv_bias,
        "attention.o_proj": spec.output_bias,
        "mlp.gate_up_proj": spec.mlp_bias,
        "mlp.down_proj": spec.mlp_bias,
    }
    table = {"model.embed_tokens.weight": Part("embedding.weight"), "model.norm.weight": Part("norm.weight")}
    if not spec.tied_head:
        table["lm_head.weight"] = Part("head.weight")
    for layer in range(spec.num_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        for kind in ("weight", "bias"):
            for source, (target, start, rows) in fused.items():
                if kind == "weight" or biases[target]:
                    table[f"{theirs}{source}.{kind}"] = Part(f"{ours}{target}.{kind}", start, rows)
            for source, target in whole.items():
                if kind == "weight" or biases.get(target, False):
                    table[f"{theirs}{source}.{kind}"] = Part(f"{ours}{target}.{kind}")
    return table


def read_config(directory: Path) -> dict[str, object]:
    """The checkpoint's config.json.

    Raises:
        CheckpointError: the folder or file is missing, or it is not a JSON object.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} holds no config.json: not a model folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


Progress = Callable[[int, int], None]


def read_tensors(
    directory: Path, spec: DecoderSpec, progress: Progress | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The decoder's parameters by name, each once and whole, in the checkpoint's dtype and its order.

    What the decoder fuses is held back until all its parts are read, so that at most a few layers' worth is
    in memory at a time. `progress` is called with (tensors read, tensors in all).

    Raises:
        CheckpointError: missing or unexpected tensors, wrong shapes, broken files.
    """
    table = part_table(spec)
    shapes = parameter_shapes(spec)
    missing = set(table)
    unfinished: dict[str, tuple[Tensor, int]] = {}
    for name, tensor in _tensors(directory, spec):
        part = table.get(name)
        if part is None:
            if IGNORED.search(name):
                continue
            raise CheckpointError(f"{directory} holds a tensor the architecture does not have: {name}")
        whole, expected = shapes[part.name], list(shapes[part.name])
        if part.rows is not None:
            expected[0] = part.rows
        if list(tensor.shape) != expected:
            raise CheckpointError(
                f"tensor {name} has shape {tuple(tensor.shape)}, config.json implies {tuple(expected)}"
            )
        if name not in missing:
            continue  # in two files: the first one counts
        missing.remove(name)
        if progress is not None:
            progress(len(table) - len(missing), len(table))
        if part.rows is None:
            yield part.name, tensor
            continue
        if part.name not in unfinished:
            unfinished[part.name] = (tensor.new_empty(whole), whole[0])
        fused, left = unfinished.pop(part.name)
        fused.narrow(0, part.start, part.rows).copy_(tensor)
        if left > part.rows:
            unfinished[part.name] = (fused, left - part.rows)
        else:
            yield part.name, fused
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of {len(table)} tensors, among them {min(missing)}"
        )


def parameter_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the decoder.

    Arithmetic, not a decoder on the meta device: that imports 60 MB of PyTorch's symbolic mathematics.
    """
    hidden, out = spec.hidden_size, spec.num_heads * spec.head_dim
    width, gates = out + 2 * spec.num_kv_heads * spec.head_dim, 2 * spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (spec.vocab_size, hidden),
        "norm.weight": (hidden,),
    }
    if not spec.tied_head:
        shapes["head.weight"] = (spec.vocab_size, hidden)
    products = (
        ("attention.qkv_proj", width, hidden, spec.qkv_bias),
        ("attention.o_proj", hidden, out, spec.output_bias),
        ("mlp.gate_up_proj", gates, hidden, spec.mlp_bias),
        ("mlp.down_proj", hidden, spec.intermediate_size, spec.mlp_bias),
    )
    for layer in range(spec.num_layers):
        prefix = f"layers.{layer}."
        for name, outputs, inputs, has_bias in products:
            shapes[f"{prefix}{name}.weight"] = (outputs, inputs)
            if has_bias:
                shapes[f"{prefix}{name}.bias"] = (outputs,)
        for name in ("input_norm", "post_attention_norm"):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
        if spec.qk_norm:
            for name in ("attention.q_norm", "attention.k_norm"):
                shapes[f"{prefix}{name}.weight"] = (spec.head_dim,)
    return shapes


def load_checkpoint(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Decoder:
    """Builds the decoder of a checkpoint folder and fills it, one tensor at a time.

    Peak memory is the weights at `dtype` plus the tensors being fused.

    Raises:
        CheckpointError: unsupported config, missing or unexpected tensors, wrong shapes, broken files.
    """
    spec = DecoderSpec.from_config(read_config(directory))
    with torch.device("meta"):
        decoder = Decoder(spec).to(dtype)
    decoder = decoder.to_empty(device=device)
    if spec.tied_head:
        decoder.head.weight = decoder.embedding.weight
    decoder.rotary.inverse_frequencies = spec.rope.inverse_frequencies().to(device)
    parameters = dict(decoder.named_parameters())
    for name, tensor in read_tensors(directory, spec, progress):
        with torch.no_grad():
            parameters[name].copy_(tensor)
    return decoder.eval().requires_grad_(False)


def _tensors(directory: Path, spec: DecoderSpec) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
            for name in names:
                if spec.tied_head and name == "lm_head.weight":
                    continue  # some exporters write the tied head a second time
                # Opened anew for each: a mapping keeps every page in memory that was read through it.
                with safe_open(path, framework="pt") as file:
                    tensor = file.get_tensor(name)
                yield name, tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error


def weight_files(directory: Path) -> list[Path]:
    """The checkpoint's safetensors files, from the shard index where there is one.

    Raises:
        CheckpointError: no safetensors here, or the index names a file that is missing.
    """
    index = directory / INDEX
    if index.exists():
        try:
            names = sorted(
                {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} cannot be read: {error}") from error
    else:
        names = [SINGLE]
    for name in names:
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory} lacks {name} (only safetensors checkpoints are supported)")
    return [directory / name for name in names]


def save_checkpoint(decoder: Decoder, directory: Path, dtype: torch.dtype) -> Path:
    """Writes the decoder's weights as model.safetensors with Hugging Face's names; returns the file's path.

    The file is replaced as a whole: a reader sees the old weights or the new ones.
    """
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    tensors = {}
    for name, part in part_table(decoder.spec).items():
        source = parameters[part.name].detach()
        rows = source if part.rows is None else source.narrow(0, part.start, part.rows)
        tensors[name] = rows.to(dtype=dtype, device="cpu").contiguous().clone()
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{SINGLE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    return partial.replace(directory / SINGLE)
