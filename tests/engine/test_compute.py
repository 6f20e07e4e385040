"""What computes is what was asked for, or the best there is, and it says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penstock.base.errors import ConfigurationError
from penstock.engine.compute import Compute, choose_compute
from penstock.engine.native.build import KernelsUnavailableError
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
SMALL = DecoderSpec.from_config(CONFIG)
LARGE = DecoderSpec.from_config(CONFIG | {"hidden_size": 4096, "intermediate_size": 11008})
KERNELS = object()


def choose(spec: DecoderSpec = SMALL, *, has_kernels: bool = True, **changes: Any) -> Compute:
    """On a CPU, with kernels or without."""

    def load() -> object:
        if not has_kernels:
            raise KernelsUnavailableError("this CPU lacks avx512_vnni")
        return KERNELS

    return choose_compute(spec, EngineSettings(**{"device": "cpu", **changes}), load)


@pytest.mark.parametrize(("spec", "dtype"), [(SMALL, torch.float32), (LARGE, torch.bfloat16)])
def test_auto_dtype_on_a_cpu_follows_the_size_of_the_model(spec: DecoderSpec, dtype: torch.dtype) -> None:
    """Small models stay exact, large ones have to fit."""
    assert choose(spec).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "has_kernels", "weights", "kv"),
    [
        ({}, True, "int8", "float32"),
        ({}, False, "float32", "float32"),
        ({"dtype": "bfloat16"}, True, "bfloat16", "bfloat16"),
        ({"dtype": "bfloat16", "quantize": "int8"}, True, "int8", "bfloat16"),
        ({"quantize": "none"}, True, "float32", "float32"),
        ({"quantize": "int4", "kv_dtype": "int8"}, True, "int4", "int8"),
        ({"quantize": "int8"}, False, "int8", "float32"),
        ({"kv_dtype": "bfloat16"}, False, "float32", "bfloat16"),
    ],
)
def test_formats(changes: dict[str, Any], has_kernels: bool, weights: str, kv: str) -> None:
    """Int8 where the kernels are, unless a precision was named."""
    compute = choose(has_kernels=has_kernels, **changes)
    assert (compute.weight_format, compute.kv_format) == (weights, kv)
    assert (compute.kernels is KERNELS) is has_kernels
    assert f"weights {weights}, KV {kv}" in compute.describe()


@pytest.mark.parametrize(
    ("changes", "has_kernels", "reason"),
    [
        ({}, False, "this CPU lacks avx512_vnni"),
        ({"kernels": "torch"}, True, "asked for"),
        ({"dtype": "float16"}, True, "float16"),
        ({"block_size": 24}, True, "block_size 24 is no multiple of 16"),
    ],
)
def test_without_kernels_the_reason_is_said(changes: dict[str, Any], has_kernels: bool, reason: str) -> None:
    """In the start log; and as an error if they were asked for by name."""
    compute = choose(has_kernels=has_kernels, **changes)
    assert compute.kernels is None
    assert f"torch kernels ({reason}" in compute.describe()
    if "kernels" not in changes:
        with pytest.raises(ConfigurationError, match=reason) as caught:
            choose(has_kernels=has_kernels, **changes, kernels="native")
        assert caught.value.param == "kernels"


def test_deterministic_needs_the_kernels() -> None:
    """The others' last bits depend on the batch; better no service than a broken promise."""
    assert choose(deterministic=True).kernels is KERNELS
    with pytest.raises(ConfigurationError, match="avx512_vnni") as caught:
        choose(deterministic=True, has_kernels=False)
    assert caught.value.param == "deterministic"


def test_int8_keys_and_values_need_the_kernels() -> None:
    """Nothing else can read them."""
    with pytest.raises(ConfigurationError, match="needs the native kernels, but this CPU lacks") as caught:
        choose(has_kernels=False, kv_dtype="int8")
    assert caught.value.param == "kv_dtype"


def test_an_explicit_device_is_taken_or_refused() -> None:
    """No silent fall-back from GPU to CPU, and no quantisation that only CPUs have."""
    if torch.cuda.is_available():
        assert choose(device="cuda").device.type == "cuda"
        with pytest.raises(ConfigurationError, match="is for CPUs"):
            choose(device="cuda", quantize="int8")
    else:
        with pytest.raises(ConfigurationError, match="no GPU") as caught:
            choose(device="cuda")
        assert caught.value.param == "device"
    assert choose(device="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
