"""Edits of logits and log-probabilities, against the plainest reading of their definitions."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.drawing import draw, fill_masks
from penstock.engine.plan import Chunk, StepPlan
from penstock.engine.sampler import sample
from penstock.engine.sampling import Mask, SamplingParams
from penstock.engine.sequence import Sequence

SIZE = 40


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    """Random logits."""
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def seen(plan: StepPlan, given: torch.Tensor) -> torch.Tensor:
    """The logits as the sampler gets them."""
    caught: list[torch.Tensor] = []

    def keep(edited: torch.Tensor, params: Any, positions: Any, masks: Any) -> list[int | None]:
        caught.append(edited.clone())
        return sample(edited, params, positions, masks)

    draw(plan, given.clone(), keep)
    return caught[0]


def plainly(row: list[float], sampling: SamplingParams, prompt: list[int], answer: list[int]) -> list[float]:
    """The definitions, token by token."""
    counts, text = Counter(answer), {*prompt, *answer}
    out = []
    for token, logit in enumerate(row):
        value = logit
        if token in text:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        value -= sampling.frequency_penalty * counts[token]
        value -= sampling.presence_penalty * (counts[token] > 0)
        value += dict(sampling.logit_bias).get(token, 0.0)
        if len(answer) < sampling.min_tokens and token in sampling.stop_token_ids:
            value = -math.inf
        out.append(value)
    return out


penalties = st.builds(
    SamplingParams,
    max_tokens=st.just(99),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    presence_penalty=st.sampled_from([0.0, 0.7, -2.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    logit_bias=st.sampled_from([(), ((3, 5.0), (7, -100.0))]),
    min_tokens=st.sampled_from([0, 4]),
    stop_token_ids=st.just(frozenset({1, 2})),
)


@given(
    penalties,
    st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=8),
    st.lists(st.integers(0, SIZE - 1), max_size=12),
    st.lists(st.integers(0, SIZE - 1), max_size=4),
)
def test_edits_are_what_their_definitions_say(
    sampling: SamplingParams, prompt: list[int], answer: list[int], draft: list[int]
) -> None:
    """Step by step as the answer grows, each row of a draft as if the draft before it were the text."""
    sequence = Sequence(1, list(prompt), sampling)
    for token in [None, *answer]:
        sequence.tokens += [] if token is None else [token]
        chunk = Chunk(sequence, len(sequence.tokens) - 1, 1, tuple(draft))
        given = logits(1 + len(draft), len(sequence.tokens))
        edited = seen(StepPlan((chunk,)), given)
        for i, row in enumerate(given.tolist()):
            expected = plainly(row, sampling, prompt, [*sequence.answer, *draft[:i]])
            assert edited[i].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_rows_of_others_are_left_as_they_are() -> None:
    """An edit is of its own sequence's rows alone."""
    plain = Sequence(1, [5], SamplingParams(max_tokens=1))
    penalised = Sequence(2, [5], SamplingParams(max_tokens=1, repetition_penalty=2.0))
    given = logits(3)
    plan = StepPlan((Chunk(plain, 0, 1), Chunk(penalised, 0, 1), Chunk(plain, 0, 1)))
    edited = seen(plan, given)
    assert torch.equal(edited[[0, 2]], given[[0, 2]])
    assert not torch.equal(edited[1], given[1])


def test_log_probabilities_are_the_models_own() -> None:
    """Before penalties, bias and temperature, for rows that ask, as many alternatives as each asks for."""
    none = Sequence(1, [5], SamplingParams(max_tokens=1))
    own = Sequence(2, [5], SamplingParams(max_tokens=1, logprobs=0, temperature=0.0))
    three = Sequence(
        3, [5], SamplingParams(max_tokens=1, logprobs=3, temperature=0.0, logit_bias=((9, 100.0),))
    )
    given = logits(3)
    drawn = draw(StepPlan(tuple(Chunk(one, 0, 1) for one in (none, own, three))), given.clone(), sample)
    expected = given.log_softmax(-1)
    assert set(drawn.logprobs) == {1, 2}
    assert drawn.tokens[2] == 9
    assert drawn.logprobs[1].token == pytest.approx(expected[1].max().item())
    assert drawn.logprobs[1].top == ()
    assert drawn.logprobs[2].token == pytest.approx(expected[2, 9].item())
    best = expected[2].topk(3)
    assert [token for token, _ in drawn.logprobs[2].top] == best.indices.tolist()
    assert [logprob for _, logprob in drawn.logprobs[2].top] == pytest.approx(best.values.tolist())


class Even:
    """A constraint that allows even tokens only, and behind a draft token those above it."""

    def fill(self, masks: Mask, generated: Any, draft: Any) -> None:
        """See Constraint."""
        for i, floor in enumerate([-1, *draft]):
            for token in range(SIZE):
                if token % 2 == 0 and token > floor:
                    masks[i, token // 32] |= np.int32(1 << (token % 32)) if token % 32 < 31 else np.int32(0)


def test_a_constraint_forbids_tokens_row_by_row() -> None:
    """What is forbidden cannot come, whatever its bias."""
    sampling = SamplingParams(max_tokens=9, temperature=0.0, logit_bias=((1, 100.0), (3, 100.0)))
    sequence = Sequence(1, [5], sampling, constraint=Even())
    plain = Sequence(2, [5], SamplingParams(max_tokens=1, temperature=0.0))
    assert fill_masks(StepPlan((Chunk(plain, 0, 1),)), SIZE) is None
    plan = StepPlan((Chunk(plain, 0, 1), Chunk(sequence, 0, 1, (10, 20))))
    masks = fill_masks(plan, SIZE)
    assert masks is not None
    assert masks.rows.tolist() == [1, 2, 3]
    drawn = draw(plan, logits(4), sample, masks)
    assert drawn.tokens[0] == logits(4)[0].argmax()
    del drawn.tokens[0]
    assert [token % 2 for token in drawn.tokens if token is not None] == [0, 0, 0]
    assert drawn.tokens[1] > 10
    assert drawn.tokens[2] > 20
