"""Encoder checkpoints from disk: names old and new, heads left unread, faults named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.base.errors import CheckpointError
from penstock.engine.encoder_spec import EncoderSpec
from penstock.engine.encoder_weights import load_encoder
from penstock.engine.weights import read_config
from tiny_encoders import ENCODERS, SCORERS, read_encoder, write_encoder

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def rewrite(directory: Path, change: Change) -> None:
    """Changes the tensors of a checkpoint."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def same(directory: Path, before: dict[str, Tensor]) -> bool:
    """True if the checkpoint still gives the same parameters."""
    after = read_encoder(directory).state_dict()
    return all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_names_from_before_are_understood(tmp_path: Path) -> None:
    """A body's prefix, gamma and beta, position ids, heads for training."""
    write_encoder(ENCODERS[0], tmp_path)
    before = read_encoder(tmp_path).state_dict()

    def age(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        old = {
            f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): tensor
            for name, tensor in tensors.items()
        }
        return old | {
            "bert.embeddings.position_ids": torch.arange(66)[None],
            "cls.predictions.bias": torch.zeros(131),
            "cls.seq_relationship.weight": torch.zeros(2, 48),
        }

    rewrite(tmp_path, age)
    assert same(tmp_path, before)


def test_shards_are_read(tmp_path: Path) -> None:
    """All that the index names."""
    model = write_encoder(SCORERS[0], tmp_path)
    before = read_encoder(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(tmp_path, before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if "layer.1.output.dense" not in k}, "lacks 2 of 53"),
        (lambda t: t | {"encoder.layer.9.output.dense.bias": torch.zeros(48)}, "does not have: .*layer.9"),
        (lambda t: t | {"nonsense": torch.zeros(1)}, "does not have: .*nonsense"),
        (lambda t: t | {"embeddings.LayerNorm.bias": torch.zeros(47)}, r"\(47,\).*\(48,\)"),
        (
            lambda t: t | {"encoder.layer.0.attention.self.query.weight": torch.zeros(144, 48)},
            r"\(144, 48\).*\(48, 48\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change: Change, words: str, tmp_path: Path) -> None:
    """With the tensor's name."""
    write_encoder(ENCODERS[0], tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        read_encoder(tmp_path)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    """With its path."""
    write_encoder(ENCODERS[0], tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        read_encoder(tmp_path)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    """Each tensor once."""
    write_encoder(SCORERS[1], tmp_path)
    told: list[tuple[int, int]] = []
    spec = EncoderSpec.from_config(read_config(tmp_path))
    load_encoder(tmp_path, spec, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))
