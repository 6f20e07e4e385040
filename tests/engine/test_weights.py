"""Checkpoints in and out, and every way in which one can be broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from penstock.base.errors import CheckpointError
from penstock.engine.decoder import Decoder
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import (
    INDEX,
    SINGLE,
    load_checkpoint,
    parameter_shapes,
    part_table,
    read_config,
    save_checkpoint,
    weight_files,
)
from tiny_checkpoints import CASES, Case, write_checkpoint

PROMPT = torch.tensor([[5, 9, 2, 60, 33]])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shapes_are_those_of_the_decoder(case: Case, tmp_path: Path) -> None:
    write_checkpoint(case, tmp_path)
    spec = DecoderSpec.from_config(read_config(tmp_path))
    with torch.device("meta"):
        parameters = Decoder(spec).named_parameters()
    assert parameter_shapes(spec) == {name: tuple(parameter.shape) for name, parameter in parameters}


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


@pytest.fixture
def sharded(written: Callable[[str], Any], tmp_path: Path) -> Path:
    """A copy of a good checkpoint in several shards, to be damaged."""
    return Path(shutil.copytree(written("llama-sharded").directory, tmp_path / "sharded"))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrites the single weight file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    """Rewrites config.json."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")


def test_the_damaged_copies_start_out_whole(folder: Path, sharded: Path) -> None:
    """Otherwise the errors below would prove nothing."""
    assert isinstance(load_checkpoint(folder), Decoder)
    assert isinstance(load_checkpoint(sharded), Decoder)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_saved_checkpoint_loads_in_transformers(
    case: Case, written: Callable[[str], Any], tmp_path: Path
) -> None:
    """Load, save, and the oracle computes what it computed from the original."""
    directory, oracle = written(case.name)
    save_checkpoint(load_checkpoint(directory), tmp_path, torch.float32)
    shutil.copy(directory / "config.json", tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(again(PROMPT).logits, oracle(PROMPT).logits)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_spec_counts_every_parameter(case: Case, written: Callable[[str], Any]) -> None:
    """Memory is planned from this number before a weight is read."""
    directory, oracle = written(case.name)
    spec = DecoderSpec.from_config(read_config(directory))
    assert spec.num_parameters == sum(parameter.numel() for parameter in oracle.parameters())
    assert spec.num_parameters == sum(parameter.numel() for parameter in Decoder(spec).parameters())


def test_saving_replaces_the_file_as_a_whole(folder: Path) -> None:
    """No half-written file stays behind, and the dtype is the one asked for."""
    path = save_checkpoint(load_checkpoint(folder), folder, torch.bfloat16)
    assert path == folder / SINGLE
    assert list(folder.glob("*.partial")) == []
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert set(load_file(path)) == set(part_table(load_checkpoint(folder).spec))


def test_weights_are_frozen_and_in_the_dtype_asked_for(checkpoint: Path) -> None:
    """Frequencies stay float32: bfloat16 cannot tell position 256 from 257."""
    decoder = load_checkpoint(checkpoint, torch.bfloat16)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    assert decoder.rotary.inverse_frequencies.dtype == torch.float32
    assert not decoder.training


def test_progress_counts_to_the_end(sharded: Path) -> None:
    """One call per tensor, the last with all."""
    calls: list[tuple[int, int]] = []
    decoder = load_checkpoint(sharded, progress=lambda done, total: calls.append((done, total)))
    total = len(part_table(decoder.spec))
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_old_rotary_buffers_are_ignored(folder: Path) -> None:
    """Checkpoints from before 2023 carry the frequencies."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.full((6,), 9.0)}))
    assert isinstance(load_checkpoint(folder), Decoder)


def test_a_tied_head_that_was_written_twice_is_ignored(written: Callable[[str], Any], tmp_path: Path) -> None:
    """Some exporters do; the embedding counts."""
    folder = Path(shutil.copytree(written("llama-tied").directory, tmp_path / "model"))
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(131, 48)}))
    decoder = load_checkpoint(folder)
    assert decoder.head.weight is decoder.embedding.weight
    assert decoder.head.weight.abs().sum() > 0


def test_a_missing_tensor_is_named(folder: Path) -> None:
    """With how many are missing."""
    name = "model.layers.1.self_attn.k_proj.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"lacks 1 of .*{name}"):
        load_checkpoint(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    """It may be a feature that the decoder lacks: serving without it would give other answers."""
    name = "model.layers.0.self_attn.q_proj.bias"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(48)}))
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_a_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    """Also where a broadcast would have made it fit."""
    change_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*\(1,\).*\(48,\)"):
        load_checkpoint(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(folder: Path, share: float) -> None:
    """A download that broke off."""
    path = folder / SINGLE
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=SINGLE):
        load_checkpoint(folder)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    """The index is the list of what must be there."""
    shards = weight_files(sharded)
    assert len(shards) > 1
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        load_checkpoint(sharded)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": [1]}}']
)
def test_a_broken_index_is_an_error_with_a_name(sharded: Path, text: str) -> None:
    """Whatever is in it, no foreign exception gets out."""
    (sharded / INDEX).write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"index\.json|lacks"):
        load_checkpoint(sharded)


def test_a_folder_without_weights_says_what_is_supported(folder: Path) -> None:
    """Most likely it holds a pickle or a GGUF file."""
    (folder / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(only safetensors"):
        load_checkpoint(folder)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    """The commonest mistake in a path."""
    with pytest.raises(CheckpointError, match=r"config\.json: not a model folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[1, 2]", b"null"])
def test_a_config_that_is_no_json_object_is_an_error_with_its_path(folder: Path, content: bytes) -> None:
    """Cut, binary, empty or of another kind."""
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder)


def test_an_unknown_architecture_is_named_before_a_weight_is_read(folder: Path) -> None:
    """Together with those that are supported."""
    change_config(folder, architectures=["GptOssForCausalLM"])
    (folder / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"'GptOssForCausalLM'.*LlamaForCausalLM"):
        load_checkpoint(folder)


def test_an_unsupported_rope_kind_is_named(folder: Path) -> None:
    """Phi's longrope has the same shapes, so nothing else would notice."""
    change_config(folder, rope_parameters={"rope_type": "longrope", "factor": 4.0})
    with pytest.raises(CheckpointError, match=r"'longrope'.*llama3"):
        load_checkpoint(folder)
