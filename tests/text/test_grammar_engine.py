"""Grammars in the engine: what a model of random weights answers is valid wherever it ends by itself."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from grammar_walk import MODEL_VOCAB_SIZE, chat_tokenizer
from native_kernels import EITHER
from penstock.engine.core import EngineCore
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import FinishReason, Sequence
from penstock.protocol.response_format import GrammarSpec, Kind
from penstock.text.constraint import Grammar, Vocabulary
from penstock.text.grammar import build_grammar
from penstock.text.grammar_source import translate
from penstock.text.tokenizer import Tokenizer
from tiny_checkpoints import Case, write_checkpoint
from tiny_engine import build_core, run_to_end

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["hello", "world"]}, "maxItems": 4},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer."""
    directory = tmp_path_factory.mktemp("checkpoint")
    shape = {"vocab_size": MODEL_VOCAB_SIZE, "max_position_embeddings": 1024}
    write_checkpoint(Case("random", "qwen2", shape), directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    """In a folder of its own: config.json is the model's."""
    return chat_tokenizer(directory / "tokenizer")


@pytest.fixture
def core(directory: Path) -> EngineCore:
    """An engine, new for each test."""
    return build_core(directory)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The model has more tokens than the tokenizer."""
    return Vocabulary.of(tokenizer, MODEL_VOCAB_SIZE)


def compiled(kind: Kind, source: str, vocabulary: Vocabulary) -> Grammar:
    """A grammar."""
    spec = GrammarSpec(kind, source, "field")
    return build_grammar(spec, translate(spec), vocabulary)


def asked(
    tokenizer: Tokenizer, grammars: Iterable[Grammar | None], max_tokens: int, **sampling: Any
) -> list[Sequence]:
    """Requests at temperature 1, each with a seed of its own."""
    prompt = tokenizer.encode("hello world, hello hello hello", add_special_tokens=False)
    return [
        Sequence(
            number,
            [*prompt],
            SamplingParams(
                max_tokens=max_tokens, seed=number, stop_token_ids=tokenizer.end_token_ids, **sampling
            ),
            constraint=None if grammar is None else grammar.new_constraint(),
        )
        for number, grammar in enumerate(grammars)
    ]


def answers(
    core: EngineCore, sequences: list[Sequence], tokenizer: Tokenizer
) -> dict[int, tuple[str, FinishReason]]:
    """Text and end by sequence."""
    tokens: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, FinishReason] = {}
    with torch.inference_mode():  # as the runner computes what the grammar changes in place
        outputs = run_to_end(core, sequences)
    for output in outputs:
        assert output.error is None
        if output.token is not None:
            tokens[output.sequence_id].append(output.token)
        if output.finish is not None:
            ends[output.sequence_id] = output.finish
    return {number: (tokenizer.decode(tokens[number]), end) for number, end in ends.items()}


@pytest.mark.parametrize("kernels", EITHER)
def test_finished_answers_validate(
    directory: Path, tokenizer: Tokenizer, vocabulary: Vocabulary, kernels: str
) -> None:
    """In one batch with requests of other forms and of none, most tokens being wrong for all of them."""
    core = build_core(directory, block_size=16, kernels=kernels)
    schema = compiled("json_schema", json.dumps(SCHEMA), vocabulary)
    pattern = compiled("regex", "[a-c]{2,5}-(hello )*x", vocabulary)
    found = answers(core, asked(tokenizer, [schema, pattern, None] * 4, max_tokens=150), tokenizer)
    finished = 0
    for number, (text, end) in found.items():
        if number % 3 == 2 or end is FinishReason.LENGTH:
            continue
        finished += 1
        assert end is FinishReason.STOP
        if number % 3 == 0:
            jsonschema.validate(json.loads(text), SCHEMA)
        else:
            assert re.fullmatch("[a-c]{2,5}-(hello )*x", text)
    assert finished >= 6


def test_a_cut_answer_ends_with_length(
    core: EngineCore, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    """It is the beginning of a valid one, and never called complete."""
    grammar = compiled("json_schema", json.dumps(SCHEMA), vocabulary)
    found = answers(core, asked(tokenizer, [grammar] * 8, max_tokens=9), tokenizer)
    assert {end for _, end in found.values()} == {FinishReason.LENGTH}
    assert all(text.startswith("{") for text, _ in found.values())


def test_drafts_do_not_change_an_answer(
    core: EngineCore, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    """An answer that repeats itself is drafted from its own text; alone in its batch, as drafts want it."""
    grammar = compiled("regex", "(hello world, ){20}", vocabulary)
    core.scheduler.limits = dataclasses.replace(core.limits, max_draft_rows=8)
    (alone,) = asked(tokenizer, [grammar], max_tokens=400)
    ((text, end),) = answers(core, [alone], tokenizer).values()
    assert (text, end) == ("hello world, " * 20, FinishReason.STOP)
    assert core.scheduler.drafts.num_accepted > 0


def test_a_preempted_answer_goes_on_where_it_was(
    directory: Path, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    """The pool holds a few sequences at a time; the answers are those of an engine with room for all."""
    grammar = compiled("regex", "(hello world, |[0-9]{9}){4}", vocabulary)
    roomy, tight = build_core(directory), build_core(directory, num_blocks=40)
    expected = answers(roomy, asked(tokenizer, [grammar] * 4, max_tokens=60), tokenizer)
    found = answers(tight, asked(tokenizer, [grammar] * 4, max_tokens=60), tokenizer)
    assert tight.scheduler.num_preemptions > 0
    assert found == expected


def test_bias_and_penalties_cannot_break_a_form(
    core: EngineCore, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    """The grammar has the last word."""
    grammar = compiled("choice", '["hello", "world"]', vocabulary)
    sequences = asked(tokenizer, [grammar] * 4, 50, logit_bias=((ord("x"), 100.0),), repetition_penalty=2.0)
    found = answers(core, sequences, tokenizer)
    assert {text for text, _ in found.values()} <= {"hello", "world"}
    assert {end for _, end in found.values()} == {FinishReason.STOP}
