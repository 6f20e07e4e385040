"""From an encoder's folder to a replica of it: what is chosen, what refused, what served beside vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from byte_tokenizer import byte_level, write_json, write_tokenizer
from penstock.base.errors import CheckpointError, ConfigurationError
from penstock.engine.settings import EngineSettings
from penstock.observe import names
from penstock.replica.loading import load_model, load_served
from served_model import served
from tiny_encoders import ENCODERS, REAL, SCORERS, write_encoder, write_encoder_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny BERT with a tokenizer."""
    write_encoder_model(ENCODERS[0], tmp_path)
    return tmp_path


def load(directory: Path, **changes: Any) -> Any:
    """Loads it on the CPU."""
    return load_served(EngineSettings(model=str(directory), device="cpu", threads=1, **changes), "named")


def test_settings_are_honoured(directory: Path) -> None:
    """Bounds of the batch, the queue and the text."""
    model = load(directory, max_sequences=3, max_waiting=2, max_batch_tokens=40, max_model_len=50)
    limits = model.service.core.limits
    assert (model.name, model.max_model_len) == ("named", 50)
    assert (limits.max_texts, limits.max_batch_tokens, limits.max_text_tokens) == (3, 40, 50)
    assert limits.max_requests == 5


@pytest.mark.parametrize(("said", "served_"), [(None, 66), (30, 30), (512, 66)])
def test_the_longest_text_is_what_the_checkpoint_was_made_for(
    directory: Path, said: int | None, served_: int
) -> None:
    """At most its positions; a setting says more than the folder."""
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": said})
    assert load(directory).max_model_len == served_
    assert load(directory, max_model_len=60).max_model_len == 60


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"quantize": "int8"}, "quantize int8"),
        ({"kernels": "native"}, "kernels native"),
        ({"kv_dtype": "int8"}, "kv_dtype int8"),
        ({"kv_cache_mb": 5}, "kv_cache_mb 5"),
        ({"block_size": 32}, "block_size 32"),
        ({"decode_slowdown": 3.0}, "decode_slowdown 3"),
        ({"max_model_len": 67}, "66 positions"),
    ],
)
def test_settings_without_effect_are_refused(directory: Path, changes: dict[str, Any], word: str) -> None:
    """By name."""
    with pytest.raises(ConfigurationError, match=word):
        load(directory, **changes)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Its ids would be outside the table."""
    write_encoder(ENCODERS[0], tmp_path)
    write_tokenizer(byte_level(), tmp_path)
    with pytest.raises(CheckpointError, match=r"259 tokens.*131"):
        load(tmp_path)


def test_what_wants_a_model_that_generates_refuses_an_encoder(directory: Path) -> None:
    """The lab, say."""
    with pytest.raises(CheckpointError, match="BertModel"):
        load_model(EngineSettings(model=str(directory)), "named")


def test_a_broken_encoder_is_seen_at_start(directory: Path) -> None:
    """Not by the first user."""
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | {"num_hidden_layers": 4})
    with pytest.raises(CheckpointError, match="lacks 16 of"):
        load(directory)


def test_settings_that_ask_for_nothing_pass(directory: Path) -> None:
    """Beside the defaults."""
    load(directory, quantize="none", kernels="torch", prefix_cache=False, decode_slowdown=0.0)


def test_a_cross_encoder_needs_no_pipeline(tmp_path: Path) -> None:
    """What is beside it for embeddings is not for its scores."""
    write_encoder_model(SCORERS[0], tmp_path)
    write_json(tmp_path / "modules.json", [{"type": "sentence_transformers.models.Dense"}])
    assert load(tmp_path).embedding is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_an_encoder_does_not_generate(directory: Path, path: str) -> None:
    """A 400 that says what it does, whatever was asked."""
    async with served(directory) as desk:
        param, message = await desk.refused(path, messages=[{"role": "user", "content": "hi"}])
        assert param == "model"
        assert "does not generate" in message
        assert "/v1/embeddings" in message


async def test_probes_models_and_metrics(directory: Path) -> None:
    """Its own numbers, under names that are documented."""
    async with served(directory) as desk:
        await desk.vectors(["the cat", "dog"])
        for path in ("/health", "/readyz", "/livez"):
            assert (await desk.get(path)).status == 200
        assert [one["id"] for one in (await desk.get("/v1/models")).json["data"]] == ["served"]
        text = (await desk.get("/metrics")).body.decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        known = {metric.name.removesuffix("_total") for metric in names.ALL}
        assert {name for name in families if not name.endswith("_created")} <= known
        values = {sample.name: sample.value for family in families.values() for sample in family.samples}
        assert values["penstock_engine_prompt_tokens_total"] == 7 + 1  # of the warm-up
        assert values["penstock_engine_failed_steps_total"] == 0
        assert values["vllm:num_requests_running"] == 0
        desk.drain.begin()
        assert (await desk.get("/readyz")).status == 503
        assert (await desk.post("/v1/embeddings", input="x")).error["code"] == "draining"


async def test_an_encoder_whose_thread_has_ended_is_not_ready(directory: Path) -> None:
    """And refuses work."""
    async with served(directory) as desk:
        await desk.model.service.stop()
        assert (await desk.get("/readyz")).status == 503
        answer = await desk.post("/v1/embeddings", input="x")
        assert (answer.status, answer.error["code"]) == (500, "engine_error")


async def test_bfloat16_is_near(tmp_path: Path) -> None:
    """Where it is asked for; cross-encoders too."""
    async with served(REAL) as exact, served(REAL, dtype="bfloat16") as rough:
        one, other = [await desk.vectors("How are you?") for desk in (exact, rough)]
        assert np.dot(one[0], other[0]) > 0.999
    write_encoder_model(SCORERS[0], tmp_path)
    async with served(tmp_path, dtype="bfloat16") as desk:
        assert (await desk.post("/v1/rerank", query="cat", documents=["dog"])).status == 200
