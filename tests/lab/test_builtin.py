"""The shipped checkpoint: what its card promises, to the engine's decoder and to transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import penstock
from dense_attention import DenseAttention
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import load_checkpoint
from penstock.lab.batches import ChatEncoder
from penstock.lab.corpus import held_out_suite
from penstock.lab.evaluate import SUITE_SEED
from penstock.lab.pretrain import ModelSettings, TrainSettings, forced_score, model_config, overall
from penstock.lab.tasks.registry import SCORED
from penstock.lab.vocabulary import render

TINY = Path(penstock.__file__).parent / "builtin" / "tiny"
MAX_BYTES = 12_000_000
QUESTION = ({"role": "user", "content": "What is 23 + 45?"},)
SEVERAL_TURNS = (
    {"role": "system", "content": "You are a helpful assistant."},
    *QUESTION,
    {"role": "assistant", "content": "68"},
    {"role": "user", "content": "再加10呢？"},
)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def test_the_files_are_complete_and_small() -> None:
    names = {path.name for path in TINY.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert needed | {"tokenizer_config.json", "README.md"} <= names
    assert (TINY / "model.safetensors").stat().st_size <= MAX_BYTES


def test_the_config_is_the_one_that_training_writes() -> None:
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    assert config == model_config(ModelSettings())
    with safe_open(TINY / "model.safetensors", framework="pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_transformers_computes_what_the_engine_computes(model: Any, tokenizer: Any) -> None:
    decoder = load_checkpoint(TINY)
    assert decoder.spec == DecoderSpec.from_config(model_config(ModelSettings()))
    tokens = torch.tensor(tokenizer(render(SEVERAL_TURNS, generate=True))["input_ids"])
    with torch.no_grad():
        ours = decoder.logits(decoder(tokens, torch.arange(len(tokens)), DenseAttention(1, len(tokens))))
        theirs = model(tokens[None]).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_chat_template_renders_as_in_training(tokenizer: Any) -> None:
    for chat in (QUESTION, SEVERAL_TURNS):
        for generate in (False, True):
            rendered = tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=generate
            )
            assert rendered == render(chat, generate=generate)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(("chat", "answer"), [(QUESTION, "68"), (SEVERAL_TURNS, "78")])
def test_transformers_gives_the_right_answer(model: Any, tokenizer: Any, chat: Any, answer: str) -> None:
    inputs = tokenizer.apply_chat_template(
        list(chat), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generated = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == answer


def test_the_answer_is_likely_enough_to_survive_sampling(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer(render(QUESTION, generate=True))["input_ids"]
    answer = tokenizer("68<|im_end|>")["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    chances = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().exp()
    assert float(chances) > 0.9


def test_a_sample_of_the_held_out_suite_is_answered() -> None:
    """The gate on the full suite is `penstock eval --gate`; this guards the files in the repository."""
    suite = held_out_suite(SUITE_SEED, per_family=10)
    encoder = ChatEncoder(Tokenizer.from_file(str(TINY / "tokenizer.json")))
    scores = forced_score(load_checkpoint(TINY), encoder, suite)
    assert set(scores) == {family.name for family in SCORED}
    assert overall(scores)[0] >= 0.9


def test_the_log_belongs_to_the_default_settings() -> None:
    log = json.loads((TINY / "train_log.json").read_text("utf-8"))
    assert log["steps"] == TrainSettings().total_steps
    assert log["settings"]["seed"] == TrainSettings().seed
