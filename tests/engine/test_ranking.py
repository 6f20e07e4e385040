"""Sequences in order, whatever comes and goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.ranking import Ranking
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence


def sequence(identity: int, arrival: float) -> Sequence:
    """A sequence that arrived then."""
    return Sequence(identity, [0], SamplingParams(max_tokens=1), arrival=arrival)


def by_arrival(one: Sequence) -> tuple[float, ...]:
    """The order under test."""
    return one.arrival, one.id


@given(st.lists(st.integers(0, 3), max_size=30), st.randoms(use_true_random=False))
def test_the_order_is_that_of_the_keys(arrivals, rng) -> None:  # type: ignore[no-untyped-def]
    """Equal arrivals too; removing one leaves the others as they were."""
    ranking = Ranking(by_arrival)
    sequences = [sequence(identity, arrival) for identity, arrival in enumerate(arrivals)]
    for one in sequences:
        ranking.add(one)
    while sequences:
        expected = sorted(sequences, key=by_arrival)
        assert list(ranking) == expected
        assert (ranking.first, ranking.last, len(ranking)) == (expected[0], expected[-1], len(expected))
        gone = sequences.pop(rng.randrange(len(sequences)))
        ranking.remove(gone)
        assert gone not in ranking
        assert all(one in ranking for one in sequences)
    assert not ranking


def test_a_sequence_may_leave_while_the_others_are_walked() -> None:
    """A decode that finds no block preempts another in the middle of the walk."""
    ranking = Ranking(by_arrival)
    sequences = [sequence(identity, 0.0) for identity in range(3)]
    for one in sequences:
        ranking.add(one)
    seen = []
    for one in ranking:
        seen.append(one.id)
        if one.id == 0:
            ranking.remove(sequences[1])
    assert seen == [0, 1, 2]
    assert list(ranking) == [sequences[0], sequences[2]]


def test_removing_what_is_not_there_is_a_defect() -> None:
    """Also if another has its key: two sequences are never the same."""
    ranking = Ranking(by_arrival)
    ranking.add(sequence(1, 0.0))
    with pytest.raises(AssertionError, match="sequence 1 is not ranked"):
        ranking.remove(sequence(1, 0.0))
