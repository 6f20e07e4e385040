"""Tiny checkpoints, written once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import settings

from tiny_checkpoints import CASES, write_checkpoint

torch.set_num_threads(1)
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


class Written(NamedTuple):
    """A checkpoint's folder and transformers' model of it."""

    directory: Path
    oracle: Any


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """Gives the checkpoint of the case of a name, written when it is first asked for."""
    done: dict[str, Written] = {}

    def get(name: str) -> Written:
        if name not in done:
            case = next(case for case in CASES if case.name == name)
            directory = tmp_path_factory.mktemp(name)
            done[name] = Written(directory, write_checkpoint(case, directory))
        return done[name]

    return get


@pytest.fixture(scope="session")
def checkpoint(written: Callable[[str], Written]) -> Path:
    """A Qwen3 checkpoint of random weights."""
    return written("qwen3").directory
