"""The arithmetic of the KV pool."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from penstock.base.errors import ConfigurationError
from penstock.engine.memory import MIB, available_bytes, plan_memory
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
SPEC = DecoderSpec.from_config(CONFIG)
# 2 for key and value, 4 layers, 2 heads of 8, 16 tokens.
BLOCK_ELEMENTS = 2 * 4 * 2 * 8 * 16


def settings(**changes: Any) -> EngineSettings:
    """Settings on the CPU."""
    return EngineSettings(**{"device": "cpu", "max_sequences": 4, **changes})


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_a_block_holds_keys_and_values_of_every_layer(dtype: str, size: int) -> None:
    """In the dtype of the weights."""
    plan = plan_memory(SPEC, settings(dtype=dtype))
    assert plan.block_bytes == BLOCK_ELEMENTS * size
    assert plan.weight_bytes == SPEC.num_parameters * size
    assert plan.dtype == getattr(torch, dtype)


def test_a_pool_of_a_given_size_holds_as_many_whole_blocks_as_fit() -> None:
    """Rounding down."""
    plan = plan_memory(SPEC, settings(dtype="float32", kv_cache_mb=3, block_size=24))
    assert plan.block_bytes == BLOCK_ELEMENTS * 4 // 16 * 24
    assert plan.num_blocks == 3 * MIB // plan.block_bytes
    assert plan.num_blocks * plan.block_bytes <= 3 * MIB < (plan.num_blocks + 1) * plan.block_bytes


def test_an_automatic_pool_has_room_for_all_sequences_at_full_length_and_no_more() -> None:
    """A tiny model does not take a quarter of the machine."""
    plan = plan_memory(SPEC, settings(max_model_len=1000))
    assert plan.num_blocks == 4 * 63
    assert plan.max_model_len == 1000


def test_a_small_pool_caps_the_context() -> None:
    """A sequence that the pool cannot hold must be refused at the door, not in the middle of its answer."""
    config = CONFIG | {"num_hidden_layers": 64, "hidden_size": 512, "head_dim": 64}
    plan = plan_memory(DecoderSpec.from_config(config), settings(dtype="float32", kv_cache_mb=10))
    assert plan.max_model_len == plan.num_blocks * 16 == 160


def test_a_context_asked_for_that_the_pool_cannot_hold_is_refused() -> None:
    """Only the model's own length is capped in silence; what the operator wrote is kept or refused."""
    config = CONFIG | {"num_hidden_layers": 64, "hidden_size": 512, "head_dim": 64}
    spec = DecoderSpec.from_config(config)
    with pytest.raises(ConfigurationError, match=r"161.*160 tokens that the KV pool holds"):
        plan_memory(spec, settings(dtype="float32", kv_cache_mb=10, max_model_len=161))
    plan = plan_memory(spec, settings(dtype="float32", kv_cache_mb=10, max_model_len=160))
    assert plan.max_model_len == 160


def test_the_context_is_the_models_own_unless_asked_for_less() -> None:
    """0 means the model's."""
    assert plan_memory(SPEC, settings()).max_model_len == 1024
    assert plan_memory(SPEC, settings(max_model_len=100)).max_model_len == 100


def test_a_context_beyond_the_model_is_refused_with_both_numbers() -> None:
    """It would answer nonsense there."""
    with pytest.raises(ConfigurationError, match=r"1025.*1024") as caught:
        plan_memory(SPEC, settings(max_model_len=1025))
    assert caught.value.param == "max_model_len"


def test_dynamic_rope_is_served_up_to_the_trained_length() -> None:
    """Beyond it, angles of cached tokens would depend on how the request arrived."""
    scaling = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 256}
    spec = DecoderSpec.from_config(CONFIG | {"rope_scaling": scaling})
    assert plan_memory(spec, settings()).max_model_len == 256
    with pytest.raises(ConfigurationError, match=r"257.*256"):
        plan_memory(spec, settings(max_model_len=257))


def test_a_pool_that_cannot_hold_one_block_is_refused() -> None:
    """With the size of a block and the key to change."""
    config = CONFIG | {"num_hidden_layers": 64, "hidden_size": 512, "head_dim": 64}
    with pytest.raises(ConfigurationError, match=r"one block of 64\.0 MiB.*kv_cache_mb"):
        plan_memory(
            DecoderSpec.from_config(config), settings(dtype="float32", kv_cache_mb=1, block_size=1024)
        )


@pytest.mark.parametrize(("hidden_size", "dtype"), [(64, torch.float32), (4096, torch.bfloat16)])
def test_auto_dtype_on_a_cpu_follows_the_size_of_the_model(hidden_size: int, dtype: torch.dtype) -> None:
    """Small models stay exact, large ones have to fit."""
    spec = DecoderSpec.from_config(CONFIG | {"hidden_size": hidden_size, "intermediate_size": 11008})
    assert plan_memory(spec, settings(kv_cache_mb=64)).dtype == dtype


def test_an_explicit_device_is_taken_or_refused() -> None:
    """No silent fall-back from GPU to CPU."""
    if torch.cuda.is_available():
        assert plan_memory(SPEC, settings(device="cuda")).device.type == "cuda"
    else:
        with pytest.raises(ConfigurationError, match="no GPU") as caught:
            plan_memory(SPEC, settings(device="cuda"))
        assert caught.value.param == "device"
    auto = plan_memory(SPEC, settings(device="auto")).device.type
    assert auto == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_description_is_the_arithmetic() -> None:
    """One line for the log: the numbers multiply out."""
    line = plan_memory(SPEC, settings(dtype="float32", kv_cache_mb=4)).describe()
    assert line.startswith("cpu float32: weights 0.6 MiB")
    assert "512 blocks x 16 tokens x 512 bytes = 4.0 MiB" in line
    assert line.endswith("context 1024 tokens")


MEMINFO = "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable: 6000 kB\n"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([], 6000 * 1024),
        (["max\n"], 6000 * 1024),
        (["1000000\n"], 1_000_000),
        (["max", "9223372036854771712"], 6000 * 1024),
    ],
)
def test_available_memory_counts_file_cache_as_free_and_heeds_the_container(
    limits: list[str], expected: int
) -> None:
    """A fresh download fills the page cache; a pod sees the host's meminfo."""
    assert available_bytes(MEMINFO, limits) == expected
