"""A BERT or RoBERTa checkpoint's tensors to the encoder's parameters, as a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from penstock.base.errors import CheckpointError
from penstock.engine.encoder import Encoder
from penstock.engine.encoder_spec import EncoderSpec
from penstock.engine.weights import Part, Progress, weight_files

# A model that was saved with a head has its body's name in front.
_PREFIX = re.compile(r"^(bert|roberta)\.")
# Names from before PyTorch had a LayerNorm.
_OLD_NORMS = {"gamma": "weight", "beta": "bias"}
# Indices that old checkpoints carry, and heads for training: of BERT's next sentence, of masked tokens.
_IGNORED = re.compile(r"^embeddings\.(position|token_type)_ids$|^pooler\.|^cls\.|^lm_head\.")


def encoder_table(spec: EncoderSpec) -> dict[str, Part]:
    """Checkpoint tensor name, without prefix -> part of our encoder, for every tensor that it must have."""
    size = spec.hidden_size
    modules = {
        "embeddings.word_embeddings": Part("embedding"),
        "embeddings.position_embeddings": Part("position_embedding"),
        "embeddings.token_type_embeddings": Part("type_embedding"),
        "embeddings.LayerNorm": Part("norm"),
    }
    for layer in range(spec.num_layers):
        theirs, ours = f"encoder.layer.{layer}.", f"layers.{layer}."
        for index, name in enumerate(("query", "key", "value")):
            modules[f"{theirs}attention.self.{name}"] = Part(f"{ours}attention.qkv_proj", index * size, size)
        modules |= {
            f"{theirs}attention.output.dense": Part(f"{ours}attention.o_proj"),
            f"{theirs}attention.output.LayerNorm": Part(f"{ours}attention_norm"),
            f"{theirs}intermediate.dense": Part(f"{ours}up_proj"),
            f"{theirs}output.dense": Part(f"{ours}down_proj"),
            f"{theirs}output.LayerNorm": Part(f"{ours}mlp_norm"),
        }
    if spec.scores and spec.family == "bert":
        modules |= {"pooler.dense": Part("pooler"), "classifier": Part("head")}
    elif spec.scores:
        modules |= {"classifier.dense": Part("pooler"), "classifier.out_proj": Part("head")}
    return {
        f"{name}.{kind}": Part(f"{part.name}.{kind}", part.start, part.rows)
        for name, part in modules.items()
        for kind in ("weight", "bias")
        if kind == "weight" or not part.name.endswith("embedding")
    }


def load_encoder(
    directory: Path,
    spec: EncoderSpec,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Encoder:
    """Builds the encoder of a checkpoint folder and fills it, one tensor at a time.

    `progress` is called with (tensors read, tensors in all).

    Raises:
        CheckpointError: missing or unexpected tensors, wrong shapes, broken files.
    """
    with torch.device("meta"):
        encoder = Encoder(spec).to(dtype)
    encoder = encoder.to_empty(device=device).eval().requires_grad_(False)
    parameters = dict(encoder.named_parameters())
    table = encoder_table(spec)
    missing = set(table)
    for name, tensor in _tensors(directory):
        part = table.get(name)
        if part is None:
            if _IGNORED.search(name):
                continue
            raise CheckpointError(f"{directory} holds a tensor the architecture does not have: {name}")
        whole = parameters[part.name]
        target = whole if part.rows is None else whole.narrow(0, part.start, part.rows)
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"tensor {name} has shape {tuple(tensor.shape)}, config.json implies {tuple(target.shape)}"
            )
        target.copy_(tensor)
        missing.discard(name)
        if progress is not None:
            progress(len(table) - len(missing), len(table))
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of {len(table)} tensors, among them {min(missing)}"
        )
    return encoder


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                    yield _plain(name), file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error


def _plain(name: str) -> str:
    """A tensor's name without the body's prefix, in today's words."""
    owner, _, kind = _PREFIX.sub("", name).rpartition(".")
    return f"{owner}.{_OLD_NORMS.get(kind, kind) if owner.endswith('LayerNorm') else kind}"
