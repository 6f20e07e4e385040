"""What an adapter's config may ask for, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import CheckpointError
from penstock.engine.lora_config import CONFIG, MAX_CONFIG_BYTES, Part, read_parts

KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
MODULES = [f"model.layers.{layer}.{kind}" for layer in range(12) for kind in KINDS] + ["lm_head"]
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def read(directory: Path, **changes: Any) -> dict[str, Part]:
    """The parts of a config with these keys; a key of None is null."""
    (directory / CONFIG).write_text(json.dumps(PLAIN | changes), "utf-8")
    return read_parts(directory, MODULES)


def test_rank_and_scale_follow_the_patterns(tmp_path: Path) -> None:
    """The first pattern that fits the end of a name counts; a layer's number is not a part of one."""
    parts = read(
        tmp_path,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={r"layers\.1\..*": 16, "q_proj": 2},
        alpha_pattern={"v_proj": 1},
    )
    assert parts["model.layers.1.self_attn.q_proj"] == Part(16, 8 / 16)
    assert parts["model.layers.11.self_attn.q_proj"] == Part(2, 8 / 2)
    assert parts["model.layers.11.self_attn.v_proj"] == Part(4, 1 / 4)
    assert read(tmp_path, use_rslora=True)["model.layers.3.self_attn.q_proj"] == Part(4, 4.0)


def test_layers_can_be_chosen(tmp_path: Path) -> None:
    """By number, or by a whole name in spite of the numbers."""
    names = read(tmp_path, layers_to_transform=[0, 11], layers_pattern="layers")
    assert set(names) == {"model.layers.0.self_attn.q_proj", "model.layers.11.self_attn.q_proj"}
    whole = "model.layers.5.mlp.down_proj"
    assert set(read(tmp_path, target_modules=["v_proj", whole], layers_to_transform=2)) == {
        "model.layers.2.self_attn.v_proj",
        whole,
    }


def test_all_linear_leaves_the_head_out(tmp_path: Path) -> None:
    """As peft does."""
    assert set(read(tmp_path, target_modules="all-linear")) == {*MODULES} - {"lm_head"}
    assert "lm_head" in read(tmp_path, target_modules=["lm_head"])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    ({"bias": "all"}, "bias 'all'"),
    ({"bias": "lora_only"}, "bias 'lora_only'"),
    ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS'"),
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"lora_bias": True}, "lora_bias"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
    ({"target_parameters": ["x"]}, "target_parameters"),
    ({"a_key_of_the_future": {"x": 1}}, "a_key_of_the_future"),
    ({"init_lora_weights": "pissa"}, "'pissa'.*path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    ({"init_lora_weights": ["x"]}, "init_lora_weights"),
    ({"target_modules": None}, "target_modules is missing"),
    ({"target_modules": []}, "names no linear layer"),
    ({"target_modules": ["c_attn"]}, "names no linear layer"),
    ({"target_modules": ["q_proj"], "exclude_modules": ".*"}, "names no linear layer"),
    ({"target_modules": "("}, "target_modules: a pattern is no regular"),
    ({"rank_pattern": {"(": 1}}, "rank_pattern: a pattern is no regular"),
    ({"rank_pattern": {"q_proj": 0}}, ">= 1"),
    ({"rank_pattern": {"q_proj": "1"}}, "Expected `int`"),
    ({"alpha_pattern": {"q_proj": "x"}}, "Expected `float`"),
    ({"alpha_pattern": [1]}, "Expected `object"),
    ({"layers_to_transform": [0], "layers_pattern": "blocks"}, "layers_pattern"),
    ({"r": 0}, ">= 1"),
    ({"r": True}, "Expected `int`"),
    ({"r": 10**400}, "cannot be read"),
    ({"r": 1.5}, "Expected `int`"),
    ({"r": 10**30}, "<= 65536"),
    ({"lora_alpha": "8"}, "Expected `float`"),
    ({"lora_alpha": float("nan")}, "cannot be read"),
    ({"lora_alpha": float("inf")}, "cannot be read"),
    ({"use_rslora": "yes"}, "Expected `bool`"),
    ({"target_modules": [1]}, "Expected `str`"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """By the key's name or the value's type."""
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "5", '"x"', "{}", "[" * 100_000, '{"peft_type":"LORA"}', '{"r":"\ud800"}']
)
def test_what_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    """Never another exception."""
    (tmp_path / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError):
        read_parts(tmp_path, MODULES)


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Never another exception."""
    folder = tmp_path_factory.mktemp("adapter")
    (folder / CONFIG).write_bytes(data)
    with pytest.raises(CheckpointError):
        read_parts(folder, MODULES)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """Its bound is said."""
    (tmp_path / CONFIG).write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(CheckpointError, match="larger than"):
        read_parts(tmp_path, MODULES)


def test_a_folder_without_a_config_is_no_adapter(tmp_path: Path) -> None:
    """Nor is one where a folder has its name."""
    with pytest.raises(CheckpointError, match="holds no adapter_config"):
        read_parts(tmp_path, MODULES)
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(CheckpointError, match="holds no adapter_config"):
        read_parts(tmp_path, MODULES)
