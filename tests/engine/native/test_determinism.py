"""The same seeded request a thousand times under mixed load: one answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from native_kernels import needs_kernels
from penstock.engine.checkpoint import resolve
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from tiny_engine import build_core, new_tokens

NEW_TOKENS = 12
VOCAB_SIZE = 500


@needs_kernels
@pytest.mark.parametrize(("quantize", "count"), [("int8", 1000), ("none", 200)])
def test_a_thousand_identical_requests_have_one_answer(quantize: str, count: int) -> None:
    """Among strangers of every length that come, go and are cancelled, with shared prefixes, a pool that is
    too small for all, chunks of every size, and drafts.
    """
    rng = random.Random(7)
    directory: Path = resolve("builtin:tiny")
    core = build_core(
        directory, kernels="native", quantize=quantize, block_size=16, num_blocks=22, max_sequences=12,
        max_batch_tokens=48, draft_rows=12,
    )  # fmt: skip
    prompt = [rng.randrange(VOCAB_SIZE) for _ in range(37)]
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=1.2, top_p=0.95, seed=11)
    answers: dict[tuple[int, ...], int] = {}
    waiting = list(range(count))
    running: dict[int, list[int]] = {}
    stranger = count
    while waiting or running or core.has_work:
        while waiting and len(running) < 8 and rng.random() < 0.7:
            number = waiting.pop()
            running[number] = []
            # Some come beside others with the same beginning, some have a cache of their own.
            salt = rng.choice(["", "", f"tenant {number % 5}"])
            core.add(Sequence(number, list(prompt), sampling, cache_salt=salt))
        if waiting and rng.random() < 0.4:
            stranger += 1
            length = rng.choice([1, 5, 20, 37, 90, 150])
            tokens = [*prompt[: rng.choice([0, 16, 30])], *(rng.randrange(VOCAB_SIZE) for _ in range(length))]
            core.add(
                Sequence(stranger, tokens, SamplingParams(max_tokens=rng.randrange(1, 90), seed=stranger))
            )
        if rng.random() < 0.05:
            core.cancel(rng.randrange(count + 1, stranger + 2))
        outputs = core.step()
        for number, tokens in new_tokens(outputs).items():
            if number in running:
                running[number] += tokens
        for output in outputs:
            if output.finish is not None and output.sequence_id in running:
                answer = tuple(running.pop(output.sequence_id))
                answers[answer] = answers.get(answer, 0) + 1
    assert list(answers.values()) == [count], f"{len(answers)} different answers"
    assert len(next(iter(answers))) == NEW_TOKENS
    stats = core.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_hit_tokens > 0
    assert stats.num_evictions > 0
