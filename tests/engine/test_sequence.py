"""Sequences: counts, transitions and the meaning of sampling parameters."""

from __future__ import annotations

import itertools

import pytest

from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import TRANSITIONS, Sequence, Status


def test_counts_follow_the_tokens() -> None:
    """Pending is what is known and not computed; generated is what came after the prompt."""
    sequence = Sequence(1, [5, 6, 7], SamplingParams(max_tokens=4))
    assert (sequence.num_prompt_tokens, sequence.num_generated, sequence.num_pending) == (3, 0, 3)
    sequence.num_computed = 3
    sequence.tokens.append(8)
    assert (sequence.num_prompt_tokens, sequence.num_generated, sequence.num_pending) == (3, 1, 1)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Status, Status)))
def test_only_the_transitions_of_the_table_are_possible(before: Status, after: Status) -> None:
    """A finished sequence stays finished, a waiting one cannot be preempted."""
    sequence = Sequence(1, [5], SamplingParams(max_tokens=4), status=before)
    if after in TRANSITIONS[before]:
        sequence.move_to(after)
        assert sequence.status is after
    else:
        with pytest.raises(AssertionError, match="sequence 1"):
            sequence.move_to(after)


def test_every_status_but_the_last_can_reach_the_end() -> None:
    """A request can be cancelled wherever it is."""
    assert all(Status.FINISHED in TRANSITIONS[status] for status in Status if status is not Status.FINISHED)
    assert TRANSITIONS[Status.FINISHED] == frozenset()


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, True), (1e-6, True), (1e-5, False), (1.0, False)])
def test_a_vanishing_temperature_is_greedy(temperature: float, greedy: bool) -> None:
    """Dividing by it would leave the range of floats."""
    assert SamplingParams(max_tokens=1, temperature=temperature).is_greedy is greedy


@pytest.mark.parametrize(
    ("params", "filters"),
    [
        (SamplingParams(max_tokens=1), False),
        (SamplingParams(max_tokens=1, top_k=0), False),
        (SamplingParams(max_tokens=1, top_k=1), True),
        (SamplingParams(max_tokens=1, top_p=0.99), True),
        (SamplingParams(max_tokens=1, min_p=0.01), True),
    ],
)
def test_filters_are_seen(params: SamplingParams, filters: bool) -> None:
    """Rows without filters skip the sort."""
    assert params.has_filters is filters


def test_sequences_are_compared_by_identity() -> None:
    """Two requests may have the same prompt; removing one from a list must not remove the other."""
    assert Sequence(1, [5], SamplingParams(max_tokens=4)) != Sequence(1, [5], SamplingParams(max_tokens=4))
