"""Requests of every kind of sampling, and strangers that come and go around them."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf

import torch

from penstock.engine.core import EngineCore
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Output, Sequence
from tiny_engine import new_tokens

VOCAB_SIZE = 131
NEW_TOKENS = 24
# One request per way to draw: greedy and each filter, and all filters together.
SAMPLING = [
    SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0),
    SamplingParams(max_tokens=NEW_TOKENS, seed=1),
    SamplingParams(max_tokens=NEW_TOKENS, temperature=1.7, seed=2),
    SamplingParams(max_tokens=NEW_TOKENS, top_k=20, seed=3),
    SamplingParams(max_tokens=NEW_TOKENS, top_p=0.8, seed=4),
    SamplingParams(max_tokens=NEW_TOKENS, min_p=0.05, seed=5),
    SamplingParams(max_tokens=NEW_TOKENS, temperature=0.7, top_k=50, top_p=0.9, min_p=0.01, seed=6),
]


def requests() -> list[Sequence]:
    """Fresh sequences of lengths 3 to 45, one per sampling."""
    generator = torch.Generator().manual_seed(5)
    return [
        Sequence(index, torch.randint(VOCAB_SIZE, (3 + 7 * index,), generator=generator).tolist(), sampling)
        for index, sampling in enumerate(SAMPLING)
    ]


def join_over_time(
    core: EngineCore, rng: random.Random, strangers: int, joining: SequenceOf[Sequence] = ()
) -> list[Output]:
    """The requests, or `joining`, in a random order at random steps, among strangers, some of whom leave."""
    joining = list(joining or requests()) + [
        Sequence(
            1000 + index,
            [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 60))],
            SamplingParams(max_tokens=rng.randint(1, 30), temperature=1.3, top_k=index % 3 * 9, seed=index),
        )
        for index in range(strangers)
    ]
    rng.shuffle(joining)
    outputs: list[Output] = []
    while joining or core.has_work:
        while joining and rng.random() < 0.4:
            core.add(joining.pop())
        if rng.random() < 0.3:
            core.cancel(1000 + rng.randrange(max(strangers, 1)))
        outputs += core.step()
        core.scheduler.check()
    return outputs


def of_requests(outputs: list[Output]) -> dict[int, list[int]]:
    """Tokens of the requests, strangers left out."""
    return {identity: tokens for identity, tokens in new_tokens(outputs).items() if identity < 1000}
