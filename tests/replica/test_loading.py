"""From a checkpoint folder to a served model that answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from byte_tokenizer import CHATML, IM_END, byte_level, write_tokenizer
from penstock.base.errors import CheckpointError
from penstock.engine.settings import EngineSettings
from penstock.replica.loading import load_model
from tiny_checkpoints import Case, write_checkpoint
from tiny_engine import greedy


def settings(directory: Path) -> EngineSettings:
    """A small engine on the CPU."""
    return EngineSettings(
        model=str(directory), device="cpu", dtype="float32", threads=1, max_sequences=3, max_waiting=2
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer that fits."""
    directory = tmp_path_factory.mktemp("model")
    write_checkpoint(Case("qwen3", "qwen3", {"vocab_size": 300}), directory)
    return write_tokenizer(byte_level(), directory, eos_token=IM_END, chat_template=CHATML)


async def test_a_loaded_model_answers(directory: Path) -> None:
    """It is named as asked, bounded as set, and its warm-up left nothing behind."""
    model = load_model(settings(directory), "named")
    assert (model.name, model.max_model_len) == ("named", 256)
    assert model.service.max_requests == 5
    assert model.template is not None
    assert model.tokenizer.end_token_ids >= {258}
    stats = model.service.stats()
    assert stats.num_held_blocks == 0
    model.service.start()
    try:
        async with model.service.submit([1, 2, 3], greedy(4)) as stream:
            assert len([output async for output in stream]) == 4
    finally:
        await model.service.stop()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Its ids would be outside the model's embedding; the message has both sizes."""
    write_checkpoint(Case("qwen3", "qwen3"), tmp_path)
    write_tokenizer(byte_level(), tmp_path)
    with pytest.raises(CheckpointError, match=r"259 tokens.*131"):
        load_model(settings(tmp_path), "named")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """Before the weights are read."""
    write_checkpoint(Case("qwen3", "qwen3"), tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_model(settings(tmp_path), "named")
