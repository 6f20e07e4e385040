"""The text side of the replicas under test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripted_replica import write_replica

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a ChatML template whose end token is <|im_end|>."""
    return write_replica(tmp_path_factory.mktemp("checkpoint"))
