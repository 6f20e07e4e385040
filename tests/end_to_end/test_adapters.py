"""`penstock up` with adapters: listed, routed and computed, through the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
from transformers import AutoModelForCausalLM

from lora_adapters import write_adapter
from running_service import RunningService


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> Path:
    """A config of the little model and one adapter of it."""
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint)
    adapter = write_adapter(oracle, tmp_path / "sql", size=0.3)
    engine = {"model": str(checkpoint), "lora_modules": [f"sql={adapter}"]}
    path = tmp_path / "penstock.yaml"
    path.write_text(json.dumps({"models": {"little": {"replicas": [{"engine": engine}]}}}), "utf-8")
    return path


def test_an_adapter_is_served_beside_its_model(config: Path) -> None:
    """With OpenAI's own client, by name; the model's answers are its own."""
    with RunningService("up", "--config", str(config), "--port", "0") as service:
        client = openai.OpenAI(base_url=f"{service.wait_announced()}/v1", api_key="x")
        listed = {model.id: (model.model_extra or {}).get("parent") for model in client.models.list()}
        assert listed == {"little": None, "sql": "little"}

        def ask(model: str) -> str:
            answer = client.completions.create(model=model, prompt="abc", max_tokens=24, temperature=0)
            assert answer.model == model
            return answer.choices[0].text

        assert ask("sql") == ask("sql") != ask("little") == ask("little")
        with pytest.raises(openai.NotFoundError, match="there is: little, sql"):
            ask("other")
