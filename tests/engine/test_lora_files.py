"""Adapters' files that are broken, of another model, or ask for what is not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_adapters import CONFIG, WEIGHTS, edit_config, edit_tensors, tensor_names, write_adapter
from penstock.base.errors import CheckpointError
from penstock.engine.lora import LoraWeights, read_lora
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(written: Callable[[str], Any], tmp_path: Path) -> Path:
    """A good one."""
    return write_adapter(written("qwen3").oracle, tmp_path)


@pytest.fixture
def spec(checkpoint: Path) -> DecoderSpec:
    """Of the model that it is for."""
    return DecoderSpec.from_config(read_config(checkpoint))


def read(adapter: Path, spec: DecoderSpec, max_rank: int = 64) -> LoraWeights:
    """As the engine does."""
    return read_lora(adapter, spec, max_rank)


def test_products_are_fused_as_the_decoders_are(adapter: Path, spec: DecoderSpec) -> None:
    """The A of q, k and v one below the other, their B beside each other in rows of their own, scaled."""
    weights = read(adapter, spec)
    assert len(weights) == 4 * spec.num_layers
    tensors = load_file(adapter / WEIGHTS)
    fused = weights[0, "qkv_proj"]
    assert torch.equal(fused.a[:8], tensors[f"{Q}.lora_A.weight"])
    assert torch.equal(fused.b[:48, :8], 2 * tensors[f"{Q}.lora_B.weight"])
    assert fused.b[48:, :8].count_nonzero() == fused.b[:48, 8:].count_nonzero() == 0
    assert fused.a.shape == (24, 48)
    assert fused.b.shape == (96, 24)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_is_read(dtype: torch.dtype, adapter: Path, spec: DecoderSpec) -> None:
    """Into float32."""
    tensors = load_file(adapter / WEIGHTS)
    edit_tensors(adapter, **{name: one.to(dtype) for name, one in tensors.items()})
    expected = tensors[f"{Q}.lora_A.weight"].to(dtype).float()
    assert torch.equal(read(adapter, spec)[0, "qkv_proj"].a[:8], expected)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(8, 47), r"q_proj.lora_A.weight has shape \(8, 47\), .* imply \(8, 48\)"),
        (torch.zeros(7, 48), "has shape"),
        (torch.zeros(8), "has shape"),
        (torch.zeros(8, 48, 1), "has shape"),
        (torch.zeros(8, 48, dtype=torch.int32), "no finite numbers"),
        (torch.full((8, 48), float("nan")), "no finite numbers"),
        (torch.full((8, 48), float("inf")), "no finite numbers"),
        (torch.full((8, 48), 1e300, dtype=torch.float64), "no finite numbers"),
        (None, "lacks 1 of 28 tensors, among them .*q_proj.lora_A"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_tensor_is_named(
    tensor: torch.Tensor | None, message: str, adapter: Path, spec: DecoderSpec
) -> None:
    """Shape, type, values, or that it is missing."""
    edit_tensors(adapter, **{f"{Q}.lora_A.weight": tensor})
    with pytest.raises(CheckpointError, match=message):
        read(adapter, spec)


@pytest.mark.parametrize(
    "name",
    [
        f"{Q}.lora_magnitude_vector", "base_model.model.lm_head.weight", f"{Q}.lora_A.bias",
        "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", "x",
    ],
)  # fmt: skip
def test_a_tensor_too_many_is_named(name: str, adapter: Path, spec: DecoderSpec) -> None:
    """It would change the answers, and nothing is ignored."""
    edit_tensors(adapter, **{name: torch.zeros(8)})
    with pytest.raises(CheckpointError, match=f"does not imply: '{name}'"):
        read(adapter, spec)


def test_a_scale_that_leaves_float32_is_refused(adapter: Path, spec: DecoderSpec) -> None:
    """It would make every answer no number."""
    with pytest.raises(CheckpointError, match="B times the scale is not finite"):
        read(edit_config(adapter, lora_alpha=1e300), spec)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_embeddings_and_heads_are_refused(target: str, adapter: Path, spec: DecoderSpec) -> None:
    """By name."""
    with pytest.raises(CheckpointError, match=f"an adapter for .*{target} is not supported"):
        read(edit_config(adapter, target_modules=["q_proj", target]), spec)


def test_a_rank_over_the_limit_is_refused(adapter: Path, spec: DecoderSpec) -> None:
    """With both numbers and the setting."""
    assert read(adapter, spec, max_rank=8)
    with pytest.raises(CheckpointError, match="has rank 8; max_lora_rank is 7"):
        read(adapter, spec, max_rank=7)


def test_an_adapter_of_another_model_is_refused(
    adapter: Path, written: Callable[[str], Any], tmp_path: Path
) -> None:
    """Before anything is computed with it."""
    other = DecoderSpec.from_config(read_config(written("qwen3-wide-heads").directory))
    with pytest.raises(CheckpointError, match="config and base model imply"):
        read(adapter, other)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_is_missing_or_no_file_is_named(name: str, adapter: Path, spec: DecoderSpec) -> None:
    """A pipe, which would be waited for, too."""
    (adapter / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read(adapter, spec)
    os.mkfifo(adapter / name)
    with pytest.raises(CheckpointError, match=name):
        read(adapter, spec)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(keep=st.floats(0, 0.999), flip=st.none() | st.tuples(st.integers(0, 400), st.integers(0, 255)))
def test_truncated_and_damaged_files_are_refused_or_read(
    keep: float, flip: tuple[int, int] | None, adapter: Path, spec: DecoderSpec
) -> None:
    """Never another exception; what is cut off is always refused."""
    whole = (adapter / WEIGHTS).read_bytes()
    try:
        damaged = bytearray(whole)
        if flip is not None:
            damaged[flip[0]] = flip[1]
        (adapter / WEIGHTS).write_bytes(damaged)
        try:
            assert len(read(adapter, spec)) == 4 * spec.num_layers
        except CheckpointError:
            assert damaged != whole
        (adapter / WEIGHTS).write_bytes(damaged[: int(len(whole) * keep)])
        with pytest.raises(CheckpointError):
            read(adapter, spec)
    finally:
        (adapter / WEIGHTS).write_bytes(whole)


def test_names_are_those_of_peft(adapter: Path) -> None:
    """The test's own tensors are what peft writes."""
    assert f"{Q}.lora_A.weight" in set(tensor_names(adapter))
