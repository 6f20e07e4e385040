"""What is found in the prefix cache changes no token, in float32; counters prove that it was found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from penstock.engine.core import EngineCore
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Output, Priority, Sequence
from tiny_engine import build_core, new_tokens, run_to_end

VOCAB_SIZE = 131
NEW_TOKENS = 12
PREFIX = torch.randint(VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(3)).tolist()
# How many tokens of PREFIX a prompt begins with, and what follows.
BRANCHES = [(70, [1, 2, 3]), (70, [1, 2, 4]), (70, []), (33, [5] * 20), (16, [6]), (0, [7] * 40)]


def requests(**fields: object) -> list[Sequence]:
    """Fresh sequences that share prefixes of different lengths, greedy and drawn."""
    return [
        Sequence(
            index,
            PREFIX[:shared] + rest,
            SamplingParams(max_tokens=NEW_TOKENS, temperature=float(index % 2), seed=index),
            **fields,  # type: ignore[arg-type]
        )
        for index, (shared, rest) in enumerate(BRANCHES)
    ]


@pytest.fixture(scope="module")
def cold(checkpoint: Path) -> dict[int, list[int]]:
    """Each request's tokens by itself, whole prompts, nothing cached."""
    core = build_core(checkpoint, max_batch_tokens=512)
    core = EngineCore(core.runner, core.limits, 256, 4, prefix_cache=False)
    tokens = {one.id: new_tokens(run_to_end(core, [one]))[one.id] for one in requests()}
    assert core.stats().prefix_hit_tokens == 0
    assert core.stats().num_free_blocks == 256
    return tokens


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("max_batch_tokens", [1, 7, 64, 512])
def test_a_warm_prefix_gives_the_same_tokens(
    checkpoint: Path, cold: dict[int, list[int]], block_size: int, max_batch_tokens: int
) -> None:
    """One after the other, so that each finds what those before it have left; then all of them once more."""
    core = build_core(
        checkpoint, block_size=block_size, num_blocks=2048 // block_size, max_batch_tokens=max_batch_tokens
    )
    for one in requests():
        assert new_tokens(run_to_end(core, [one]))[one.id] == cold[one.id]
    assert core.stats().prefix_hit_tokens >= 64 + 64 + 32 + 16
    before = core.stats()
    again = requests()
    assert new_tokens(run_to_end(core, again)) == cold
    for one in again:
        length = one.num_prompt_tokens
        assert one.num_cached_tokens == (length - 1) // block_size * block_size
    computed = core.stats().prompt_tokens - before.prompt_tokens
    hits = core.stats().prefix_hit_tokens - before.prefix_hit_tokens
    assert computed == sum(one.num_prompt_tokens for one in again) - hits
    assert computed >= len(again)  # a full hit computes its last token


@pytest.mark.parametrize(("max_batch_tokens", "num_remaps", "num_hits"), [(512, 18, 0), (32, 0, 64)])
def test_sequences_that_run_together_share_their_blocks(
    checkpoint: Path, cold: dict[int, list[int]], max_batch_tokens: int, num_remaps: int, num_hits: int
) -> None:
    """In one step both compute the same 18 blocks, and one copy is kept; if the second comes a step later, it
    finds what the first, still running, has got.
    """
    core = build_core(checkpoint, max_batch_tokens=max_batch_tokens)
    pair = requests()[:2]
    outputs: list[Output] = []
    for one in pair:
        core.add(one)
    were_equal = False
    while core.has_work:
        outputs += core.step()
        core.scheduler.check()
        if all(len(one.path) >= 18 for one in pair):
            were_equal = True
            assert pair[0].block_table[:18] == pair[1].block_table[:18]
            assert pair[0].block_table[18] != pair[1].block_table[18]
    assert were_equal
    assert new_tokens(outputs) == {one.id: cold[one.id] for one in pair}
    assert core.stats().num_remaps >= num_remaps
    assert core.stats().prefix_hit_tokens >= num_hits


def test_an_answer_is_found_when_the_conversation_goes_on(checkpoint: Path) -> None:
    """What was decoded is cached like what was prefilled, and gives the same tokens."""
    core = build_core(checkpoint)
    question = PREFIX[:30]
    answer = new_tokens(run_to_end(core, [Sequence(1, list(question), SamplingParams(max_tokens=20))]))[1]
    follow_up = [*question, *answer, 9, 9, 9]

    def ask(core: EngineCore) -> tuple[list[int], int | None]:
        one = Sequence(2, list(follow_up), SamplingParams(max_tokens=8, seed=2))
        return new_tokens(run_to_end(core, [one]))[2], one.num_cached_tokens

    warm, num_cached = ask(core)
    assert num_cached == (30 + 19) // 4 * 4  # the last token of an answer is never computed
    assert (warm, 0) == ask(build_core(checkpoint))


def test_salts_share_nothing(checkpoint: Path, cold: dict[int, list[int]]) -> None:
    """The same prompt of another tenant is computed anew."""
    core = build_core(checkpoint)
    for salt in ("one", "two"):
        before = core.stats().prefix_hit_tokens
        (one,) = (one for one in requests(cache_salt=salt) if one.id == 0)
        assert new_tokens(run_to_end(core, [one])) == {0: cold[0]}
        assert one.num_cached_tokens == 0
        assert core.stats().prefix_hit_tokens == before


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_evictions_preemptions_and_cancels_change_no_token(
    checkpoint: Path, cold: dict[int, list[int]], seed: int, block_size: int
) -> None:
    """A storm in a tight pool: strangers with the same prefixes come and are cancelled, all are preempted."""
    rng = random.Random(seed)
    core = build_core(
        checkpoint, block_size=block_size, num_blocks=112 // block_size, max_batch_tokens=rng.choice([9, 40])
    )
    joining = requests() + [
        Sequence(
            100 + index,
            PREFIX[: rng.randint(1, 70)] + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(0, 20))],
            SamplingParams(max_tokens=rng.randint(1, 40), seed=index),
            priority=rng.choice(list(Priority)),
            cache_salt=rng.choice(["", "", "other"]),
        )
        for index in range(20)
    ]
    rng.shuffle(joining)
    outputs: list[Output] = []
    while joining or core.has_work:
        while joining and rng.random() < 0.4:
            core.add(joining.pop())
        if rng.random() < 0.15:
            core.cancel(100 + rng.randrange(20))
        outputs += core.step()
        core.scheduler.check()
    assert {identity: tokens for identity, tokens in new_tokens(outputs).items() if identity < 100} == cold
    stats = core.stats()
    assert min(stats.num_preemptions, stats.num_evictions, stats.prefix_hit_tokens) > 0
    assert stats.num_held_blocks == 0
