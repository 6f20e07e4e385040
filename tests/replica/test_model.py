"""Defaults of a checkpoint, and what a request makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import write_json
from penstock.base.errors import CheckpointError
from penstock.replica.model import SamplingDefaults


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, SamplingDefaults()),
        ({}, SamplingDefaults()),
        ({"temperature": None, "top_p": None, "top_k": None, "min_p": None}, SamplingDefaults()),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1},
         SamplingDefaults(0.6, 0.95, 20, 0.1)),
        ({"do_sample": False}, SamplingDefaults(temperature=0.0)),
        ({"do_sample": False, "temperature": 0.6}, SamplingDefaults(temperature=0.0)),
        ({"temperature": 0}, SamplingDefaults(temperature=0.0)),
        ({"top_k": 0}, SamplingDefaults(top_k=None)),
    ],
)  # fmt: skip
def test_defaults_come_from_the_checkpoint(
    tmp_path: Path, config: dict[str, Any] | None, expected: SamplingDefaults
) -> None:
    """Else they are OpenAI's."""
    if config is not None:
        write_json(tmp_path / "generation_config.json", config)
    assert SamplingDefaults.of_checkpoint(tmp_path) == expected


@pytest.mark.parametrize(
    "config", [{"temperature": "hot"}, {"top_k": [1]}, {"top_p": {"a": 1}}, {"min_p": "x"}, []]
)
def test_defaults_that_are_no_numbers_are_a_checkpoint_error(tmp_path: Path, config: Any) -> None:
    """At start-up, with the file's name."""
    write_json(tmp_path / "generation_config.json", config)
    with pytest.raises(CheckpointError, match="generation_config"):
        SamplingDefaults.of_checkpoint(tmp_path)
