"""Random LoRA adapters, written by peft, the oracle, and read by ours."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from penstock.engine.adapter import Adapter
from penstock.engine.lora import read_lora
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MAX_RANK = 64
_numbers = itertools.count(1)


@contextlib.contextmanager
def peft_may_warn() -> Iterator[None]:
    """peft uses what transformers has deprecated, and warns of configs that we test on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_adapter(base: Any, directory: Path, *, seed: int = 1, size: float = 0.15, **config: Any) -> Path:
    """An adapter of random values for transformers' model `base`, which stays as it is."""
    given = {"r": 8, "lora_alpha": 16, "target_modules": ALL, "task_type": "CAUSAL_LM", **config}
    with peft_may_warn():
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**given))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # B too, which begins with zeros
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    with peft_may_warn():
        model.save_pretrained(directory)
    return directory


def with_peft(base: Any, directory: Path, *, merged: bool = False) -> Any:
    """transformers' model with the adapter of a folder, as peft reads it."""
    with peft_may_warn():
        model = PeftModel.from_pretrained(copy.deepcopy(base), directory).eval()
        return model.merge_and_unload() if merged else model


def read_adapter(runner: Any, checkpoint: Path, directory: Path, max_rank: int = MAX_RANK) -> Adapter:
    """An adapter as a runner of ours computes with it."""
    spec = DecoderSpec.from_config(read_config(checkpoint))
    weights = runner.adapt(read_lora(directory, spec, max_rank))
    return Adapter(next(_numbers), directory.name, str(directory), 0, weights)


def edit_config(directory: Path, **changes: Any) -> Path:
    """Changes keys of an adapter's config."""
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    return directory


def edit_tensors(directory: Path, **changes: torch.Tensor | None) -> Path:
    """Replaces tensors of an adapter's file, adds them, or takes them out (None)."""
    tensors = load_file(directory / WEIGHTS) | changes
    save_file({name: one for name, one in tensors.items() if one is not None}, directory / WEIGHTS)
    return directory


def tensor_names(directory: Path) -> Iterator[str]:
    """The names in an adapter's file."""
    return iter(sorted(load_file(directory / WEIGHTS)))
