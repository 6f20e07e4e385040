"""What it costs to hold answers to a JSON schema: eight sequences of equal length, with one and without."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from penstock.engine.core import EngineCore
from penstock.engine.sampling import Constraint, SamplingParams
from penstock.engine.sequence import Sequence
from penstock.protocol.response_format import GrammarSpec
from penstock.replica.model import ServedModel
from surface.turns import speeds

BATCH = 8
PROMPT_TOKENS = 64
TOKENS = 96
# An array long enough that no answer ends before the others.
SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 200,
    "items": {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "name": {"type": "string", "maxLength": 40},
            "kind": {"enum": ["book", "film", "song"]},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            "price": {"type": "number"},
            "sold": {"type": "boolean"},
        },
        "required": ["id", "name", "kind", "tags", "price", "sold"],
        "additionalProperties": False,
    },
}


def seconds_per_token(
    core: EngineCore, rng: random.Random, new_constraint: Callable[[], Constraint] | None
) -> float:
    """Of the batch while all of it decodes."""
    for index in range(BATCH):
        prompt = [rng.randrange(1000, 150_000) for _ in range(PROMPT_TOKENS)]
        core.add(
            Sequence(
                index + 1,
                prompt,
                SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=index),
                constraint=None if new_constraint is None else new_constraint(),
            )
        )
    count, started = 0, 0.0
    while core.has_work:
        outputs = core.step()
        errors = [output.error for output in outputs if output.error is not None]
        if errors:
            raise errors[0]
        is_full = sum(output.token is not None for output in outputs) == BATCH
        if is_full and started:
            count += BATCH
            ended = time.perf_counter()
        elif is_full:
            started = time.perf_counter()
    return (ended - started) / count


def measure(model: ServedModel, repeats: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Tokens per second, in turns."""
    spec = GrammarSpec("json_schema", json.dumps(SCHEMA), "response_format")
    # The random checkpoint names no end token, and an answer must be able to end where its form does.
    model.tokenizer.end_token_ids = frozenset({0})
    grammar = asyncio.run(model.grammars.compile(spec))
    core, rng = model.service.core, random.Random(9)
    constraints = {"free": None, "schema": grammar.new_constraint}
    found = speeds(lambda kind: seconds_per_token(core, rng, constraints[kind]), "free", "schema", repeats)
    say(f"JSON: {median(found['free']):.0f} tok/s without, {median(found['schema']):.0f} with a schema")
    return found
