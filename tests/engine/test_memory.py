"""The arithmetic of the KV pool."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
import torch

from penstock.base.errors import ConfigurationError
from penstock.engine.compute import choose_compute
from penstock.engine.memory import MIB, MemoryPlan, available_bytes, plan_memory
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
SPEC = DecoderSpec.from_config(CONFIG)
# 2 for key and value, 4 layers, 2 heads of 8, 16 tokens.
BLOCK_ELEMENTS = 2 * 4 * 2 * 8 * 16


def settings(**changes: Any) -> EngineSettings:
    """Settings on the CPU."""
    return EngineSettings(**{"device": "cpu", "max_sequences": 4, **changes})


def plan(spec: DecoderSpec, chosen: EngineSettings) -> MemoryPlan:
    """On PyTorch's operations."""
    return plan_memory(spec, chosen, choose_compute(spec, chosen, no_kernels))


def no_kernels() -> Any:
    """A machine without."""
    raise KernelsUnavailableError("there are none")


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_a_block_holds_keys_and_values_of_every_layer(dtype: str, size: int) -> None:
    """In the dtype of the weights."""
    memory = plan(SPEC, settings(dtype=dtype))
    assert memory.block_bytes == BLOCK_ELEMENTS * size
    assert memory.compute.dtype == getattr(torch, dtype)
    assert memory.compute.kv_format == dtype


def test_a_pool_of_a_given_size_holds_as_many_whole_blocks_as_fit() -> None:
    """Rounding down."""
    memory = plan(SPEC, settings(dtype="float32", kv_cache_mb=3, block_size=24))
    assert memory.block_bytes == BLOCK_ELEMENTS * 4 // 16 * 24
    assert memory.num_blocks == 3 * MIB // memory.block_bytes
    assert memory.num_blocks * memory.block_bytes <= 3 * MIB < (memory.num_blocks + 1) * memory.block_bytes


def test_an_automatic_pool_has_room_for_all_sequences_at_full_length_and_no_more() -> None:
    """A tiny model does not take a quarter of the machine."""
    memory = plan(SPEC, settings(max_model_len=1000))
    assert memory.num_blocks == 4 * 63
    assert memory.max_model_len == 1000


def test_a_small_pool_caps_the_context() -> None:
    """A sequence that the pool cannot hold must be refused at the door, not in the middle of its answer."""
    config = CONFIG | {"num_hidden_layers": 64, "hidden_size": 512, "head_dim": 64}
    memory = plan(DecoderSpec.from_config(config), settings(dtype="float32", kv_cache_mb=10))
    assert memory.max_model_len == memory.num_blocks * 16 == 160


def test_a_context_asked_for_that_the_pool_cannot_hold_is_refused() -> None:
    """Only the model's own length is capped in silence; what the operator wrote is kept or refused."""
    config = CONFIG | {"num_hidden_layers": 64, "hidden_size": 512, "head_dim": 64}
    spec = DecoderSpec.from_config(config)
    with pytest.raises(ConfigurationError, match=r"161.*160 tokens that the KV pool holds"):
        plan(spec, settings(dtype="float32", kv_cache_mb=10, max_model_len=161))
    memory = plan(spec, settings(dtype="float32", kv_cache_mb=10, max_model_len=160))
    assert memory.max_model_len == 160


def test_the_context_is_the_models_own_unless_asked_for_less() -> None:
    """0 means the model's."""
    assert plan(SPEC, settings()).max_model_len == 1024
    assert plan(SPEC, settings(max_model_len=100)).max_model_len == 100


def test_a_context_beyond_the_model_is_refused_with_both_numbers() -> None:
    """It would answer nonsense there."""
    with pytest.raises(ConfigurationError, match=r"1025.*1024") as caught:
        plan(SPEC, settings(max_model_len=1025))
    assert caught.value.param == "max_model_len"


def test_dynamic_rope_is_served_up_to_the_trained_length() -> None:
    """Beyond it, angles of cached tokens would depend on how the request arrived."""
    scaling = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 256}
    spec = DecoderSpec.from_config(CONFIG | {"rope_scaling": scaling})
    assert plan(spec, settings()).max_model_len == 256
    with pytest.raises(ConfigurationError, match=r"257.*256"):
        plan(spec, settings(max_model_len=257))


def test_a_pool_that_cannot_hold_one_block_is_refused() -> None:
    """With the size of a block and the key to change."""
    config = CONFIG | {"num_hidden_layers": 64, "hidden_size": 512, "head_dim": 64}
    with pytest.raises(ConfigurationError, match=r"one block of 64\.0 MiB.*kv_cache_mb"):
        plan(DecoderSpec.from_config(config), settings(dtype="float32", kv_cache_mb=1, block_size=1024))


def test_the_description_is_the_arithmetic() -> None:
    """One line for the log: the numbers multiply out."""
    line = plan(SPEC, settings(dtype="float32", kv_cache_mb=4)).describe()
    assert line.startswith("weights 0.6 MiB + KV pool")
    assert "512 blocks x 16 tokens x 512 bytes = 4.0 MiB" in line
    parts = [float(part) for part in re.findall(r"([0-9.]+) MiB", line)]
    assert parts[-1] == pytest.approx(sum(parts[:-1]), abs=0.2)
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


@pytest.mark.parametrize(("quantize", "tables"), [("none", 1), ("int8", 2)])
def test_pytorch_looks_up_in_a_table_of_its_own_where_the_head_is_quantised(
    quantize: Literal["none", "int8"], tables: int
) -> None:
    """Also in a model that ties them, so the arithmetic counts both."""
    tied = DecoderSpec.from_config(CONFIG | {"tie_word_embeddings": True})
    both = plan(SPEC, settings(quantize=quantize)).weight_bytes
    table = 128 * 64 * 4  # 100 rows in panels of 32
    assert both - plan(tied, settings(quantize=quantize)).weight_bytes == (2 - tables) * table
