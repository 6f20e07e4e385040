"""Speculation changes how fast tokens come, never which: exact, on both kinds of kernels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from native_kernels import EITHER
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import FinishReason, Sequence
from tiny_engine import CountingForward, build_core, greedy, new_tokens, run_to_end, scripted_core

FEW = ((4, 30.0), (7, 30.0), (9, 30.0))


def repeating(count: int = 6, **changes: object) -> list[Sequence]:
    """Sequences of three different tokens: what came before comes again, and often goes on differently."""
    made = []
    for index in range(count):
        sampling = SamplingParams(max_tokens=40, seed=index, temperature=1.5 * (index % 3), logit_bias=FEW)
        made.append(Sequence(index, [20 + index, *[9, 4, 7] * 6], dataclasses.replace(sampling, **changes)))
    return made


def one_by_one(
    directory: Path, kernels: str, sequences: list[Sequence], draft_rows: int
) -> tuple[dict, object]:
    """Each sequence's tokens when it runs alone, and what became of the drafts."""
    core = build_core(directory, kernels=kernels, draft_rows=draft_rows, block_size=16)
    tokens = {one.id: new_tokens(run_to_end(core, [one]))[one.id] for one in sequences}
    return tokens, core.scheduler.drafts


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"repetition_penalty": 1.05, "frequency_penalty": 0.1, "presence_penalty": 0.1},
        {"min_tokens": 30, "stop_token_ids": frozenset({7})},
        {"logprobs": 2},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=["plain", "penalties", "stops", "logprobs", "filters"],
)
def test_drafts_do_not_change_tokens(checkpoint: Path, kernels: str, changes: dict[str, object]) -> None:
    """Greedy and sampled; some drafts are accepted and some are not, or nothing was tested."""
    plain, _ = one_by_one(checkpoint, kernels, repeating(**changes), draft_rows=0)
    drafted, stats = one_by_one(checkpoint, kernels, repeating(**changes), draft_rows=12)
    assert drafted == plain
    assert 0 < stats.num_accepted < stats.num_tokens


@pytest.mark.parametrize("kernels", EITHER)
def test_drafts_under_preemption_do_not_change_tokens(checkpoint: Path, kernels: str) -> None:
    """A pool that holds two of six: blocks taken for a draft are never somebody else's."""
    alone, _ = one_by_one(checkpoint, kernels, repeating(), draft_rows=0)
    core = build_core(
        checkpoint, kernels=kernels, block_size=16, num_blocks=9, max_batch_tokens=32, draft_rows=12
    )
    assert new_tokens(run_to_end(core, repeating())) == alone
    assert core.stats().num_preemptions > 0
    assert core.scheduler.drafts.num_accepted > 0


class Cycling(CountingForward):
    """The next token is the last one plus one, modulo four; a row for every draw."""

    def run(self, plan):  # type: ignore[no-untyped-def]
        """See ForwardPass."""
        self.ran.append([chunk.sequence.id for chunk in plan.chunks])
        rows = []
        for chunk in plan.sampling_chunks:
            known = [*chunk.sequence.tokens[-1:], *chunk.draft]
            rows += [(token + 1) % 4 for token in known]
        return F.one_hot(torch.tensor(rows, dtype=torch.int64), 32).float() * 20


def test_accepted_drafts_save_steps_and_limits_hold() -> None:
    """A text that repeats at once: 40 tokens in far fewer steps, and exactly 40."""
    runner = Cycling()
    core = scripted_core(runner, max_model_len=128)
    core.scheduler.limits = core.limits = dataclasses.replace(core.limits, max_draft_rows=12)
    outputs = run_to_end(core, [Sequence(1, [0, 1, 2, 3] * 3, greedy(40))])
    assert new_tokens(outputs)[1] == [0, 1, 2, 3] * 10
    assert outputs[-1].finish is FinishReason.LENGTH
    assert len(runner.ran) < 10
    assert core.stats().generated_tokens == 40


def test_a_stop_token_inside_a_draft_ends_there() -> None:
    """What was accepted behind it is not the answer's."""
    core = scripted_core(Cycling(), max_model_len=128)
    core.scheduler.limits = core.limits = dataclasses.replace(core.limits, max_draft_rows=12)
    sampling = greedy(40, stop_token_ids=frozenset({2}), min_tokens=8)
    outputs = run_to_end(core, [Sequence(1, [0, 1, 2, 3] * 3, sampling)])
    # With 2 forbidden at first, the likeliest of the equals, token 0, comes in its place.
    assert new_tokens(outputs)[1][-1] == 2
    assert outputs[-1].finish is FinishReason.STOP
    assert len(new_tokens(outputs)[1]) >= 9


def test_the_context_ends_a_drafting_sequence_at_its_last_token() -> None:
    """Drafts never reach beyond it."""
    core = scripted_core(Cycling(), max_model_len=30)
    core.scheduler.limits = core.limits = dataclasses.replace(core.limits, max_draft_rows=12)
    outputs = run_to_end(core, [Sequence(1, [0, 1, 2, 3] * 3, greedy(100))])
    assert len(new_tokens(outputs)[1]) == 18
    assert outputs[-1].finish is FinishReason.LENGTH


def test_no_drafts_beside_prompts_or_many_decodes() -> None:
    """They are for steps that are nearly free of other rows."""
    core = scripted_core(Cycling(), max_model_len=128, max_sequences=8)
    core.scheduler.limits = core.limits = dataclasses.replace(core.limits, max_draft_rows=4)
    run_to_end(core, [Sequence(i, [0, 1, 2, 3] * 2, greedy(12)) for i in range(4)])
    assert core.scheduler.drafts.num_drafts == 0
