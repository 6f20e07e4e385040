"""The engine's keys of the config tree."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from penstock.engine.settings import EngineSettings


def test_the_defaults_are_valid_together() -> None:
    """`penstock serve` without a config file."""
    assert EngineSettings().max_batch_tokens >= EngineSettings().max_sequences


def test_every_decoding_sequence_needs_a_row_in_each_step() -> None:
    """Otherwise some stream would stand still for no reason that its user could see."""
    with pytest.raises(ValidationError, match=r"max_batch_tokens \(10\).*max_sequences \(11\)"):
        EngineSettings(max_batch_tokens=10, max_sequences=11)
    assert EngineSettings(max_batch_tokens=10, max_sequences=10).max_batch_tokens == 10


@pytest.mark.parametrize(
    "wrong",
    [{"block_size": 0}, {"max_sequences": 0}, {"kv_cache_mb": -1}, {"dtype": "int8"}, {"blocksize": 16}],
)
def test_a_wrong_value_or_an_unknown_key_is_refused_by_name(wrong: dict[str, object]) -> None:
    """A typo in a config file must not mean the default."""
    (key,) = wrong
    with pytest.raises(ValidationError, match=key):
        EngineSettings(**wrong)


@pytest.mark.parametrize("value", [0.5, 1.0, -1.0, float("inf"), float("nan")])
def test_a_slowdown_that_leaves_no_time_for_prompts_is_refused(value: float) -> None:
    """At 1 a step would have time for its decodes only; 0 says that there is no bound."""
    with pytest.raises(ValidationError, match="decode_slowdown"):
        EngineSettings(decode_slowdown=value)
    assert EngineSettings(decode_slowdown=0.0).decode_slowdown == 0.0


def test_every_key_has_a_description() -> None:
    """The docs are made of them."""
    assert all(field.description for field in EngineSettings.model_fields.values())


@pytest.mark.parametrize("module", ["a", "=b", "a=", "", "="])
def test_an_adapter_has_a_name_and_a_folder(module: str) -> None:
    """The first equals sign is between them."""
    with pytest.raises(ValidationError, match="not of the form name=folder"):
        EngineSettings(lora_modules=[module])
    settings = EngineSettings(lora_modules=["a=/x=y", "b c= z"])
    assert settings.lora_folders == {"a": "/x=y", "b c": " z"}


def test_adapters_fit_together() -> None:
    """Each name once, no more than there is room for, and strings."""
    with pytest.raises(ValidationError, match="'a' is there twice"):
        EngineSettings(lora_modules=["a=b", "a=c"])
    with pytest.raises(ValidationError, match="has 2 adapters and max_loras is 1"):
        EngineSettings(lora_modules=["a=b", "b=c"], max_loras=1)
    with pytest.raises(ValidationError, match="lora_modules"):
        EngineSettings(lora_modules={"a": "b"})
