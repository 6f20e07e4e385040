"""The fingerprint tells engines apart whose KV differs, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.base.errors import CheckpointError
from penstock.engine.kv_fingerprint import (
    NUM_PIECES,
    PIECE_BYTES,
    differences,
    fingerprint_of,
    weights_digest,
)
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import SINGLE, read_config
from tiny_engine import plan_for

LARGE = NUM_PIECES * PIECE_BYTES


def digest_of(tensors: dict[str, torch.Tensor], folder: Path) -> str:
    """Of a file with these tensors."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / SINGLE)
    return weights_digest(folder)


def test_a_copy_has_the_same_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    """Wherever it lies, and whenever it was written."""
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / SINGLE).touch()

    def of(directory: Path) -> Any:
        spec = DecoderSpec.from_config(read_config(directory))
        return fingerprint_of(directory, spec, plan_for(directory), "torch-1")

    assert of(copy) == of(checkpoint)
    assert differences(of(copy), of(checkpoint)) == []


@pytest.mark.parametrize("place", [0, 1, 7, -1])
def test_every_value_of_a_small_tensor_counts(tmp_path: Path, place: int) -> None:
    """Biases and norms are read whole."""
    tensors = {"a.weight": torch.zeros(64), "b.weight": torch.ones(8)}
    before = digest_of(tensors, tmp_path / "m")
    tensors["b.weight"][place] += 1e-6
    assert digest_of(tensors, tmp_path / "m") != before


def test_a_large_tensor_is_sampled_all_over(tmp_path: Path) -> None:
    """A change of a sixteenth of it is always seen, wherever it is; as are the first and the last value."""
    tensor = torch.zeros(LARGE)
    before = digest_of({"w": tensor}, tmp_path / "m")
    width = LARGE // 15 + 1
    for start in [0, *range(0, LARGE - width, LARGE // 40), LARGE - 1]:
        changed = tensor.clone()
        changed[start : start + (1 if start in (0, LARGE - 1) else width)] = 1.0
        assert digest_of({"w": changed}, tmp_path / "m") != before, start


@pytest.mark.parametrize(
    "other",
    [{"v": torch.zeros(8)}, {"w": torch.zeros(2, 4)}, {"w": torch.zeros(8, dtype=torch.int32)}],
    ids=["name", "shape", "type"],
)
def test_names_shapes_and_types_count(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    """Though the bytes of the values are the same."""
    assert digest_of(other, tmp_path / "m") != digest_of({"w": torch.zeros(8)}, tmp_path / "m")


def test_all_shards_count(written: Callable[[str], Any], tmp_path: Path) -> None:
    """Not only the first file."""
    copy = shutil.copytree(written("llama-sharded").directory, tmp_path / "copy")
    before = weights_digest(copy)
    last = sorted(copy.glob("*.safetensors"))[-1]
    tensors = load_file(last)
    next(iter(tensors.values())).flatten()[0] += 1
    save_file(tensors, last, metadata={"format": "pt"})
    assert weights_digest(copy) != before


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b'\x08\0\0\0\0\0\0\0{"a": 1}']
)
def test_a_broken_file_is_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    """As it is wherever weights are read."""
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        weights_digest(tmp_path)
