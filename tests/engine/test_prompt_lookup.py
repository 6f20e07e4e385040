"""Drafts: what is proposed, and how their length is learned."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.prompt_lookup import FIRST_DRAFT, MAX_PAUSE, NGRAM, Lookup

REPEATED = [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_followed_the_last_tokens_is_proposed() -> None:
    """The latest place where they came counts."""
    tokens = [*REPEATED, 9, *REPEATED[:5], 40, 41, 42, 43, *REPEATED[2:5]]
    assert Lookup().propose(tokens, 10) == (40, 41, 42)
    assert Lookup().propose(tokens, 2) == (40, 41)


def test_nothing_is_proposed_where_nothing_repeats() -> None:
    """Nor for texts that are too short to hold a precedent."""
    assert Lookup().propose(list(range(100)), 10) == ()
    for length in range(NGRAM + 1):
        assert Lookup().propose([7] * length, 10) == ()


def test_what_repeats_goes_on_repeating() -> None:
    """A draft may be longer than the period."""
    lookup = Lookup()
    for _ in range(2):
        lookup.learn(3, 3, longest=11)
    assert lookup.propose([1, 2] * 5, 11) == (1, 2) * 5 + (1,)


def test_accepted_drafts_grow_and_refused_ones_shrink() -> None:
    """Up to the bound, down to one, then pauses that double up to theirs."""
    lookup, tokens = Lookup(), [5] * 50
    sizes = []
    for _ in range(4):
        sizes.append(len(lookup.propose(tokens, 100)))
        lookup.learn(sizes[-1], sizes[-1], longest=11)
    assert sizes == [FIRST_DRAFT, 2 * FIRST_DRAFT, 11, 11]
    lookup.learn(11, 4, longest=11)
    assert len(lookup.propose(tokens, 100)) == 4
    while (size := len(lookup.propose(tokens, 100))) > 1:
        lookup.learn(size, 0, longest=11)
    pauses = []
    for _ in range(9):
        lookup.learn(1, 0, longest=11)
        pauses.append(0)
        while not lookup.propose(tokens, 100):
            pauses[-1] += 1
    assert pauses == [1, 3, 7, 15, 31, 63, MAX_PAUSE, MAX_PAUSE, MAX_PAUSE]
    lookup.learn(1, 1, longest=11)
    assert len(lookup.propose(tokens, 100)) == 2


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 12))
def test_a_draft_is_a_continuation_that_was_seen(tokens: list[int], limit: int) -> None:
    """For any text, grown token by token or seen at once."""
    grown = Lookup()
    for length in range(len(tokens)):
        grown.propose(tokens[:length], 1)
    draft = Lookup().propose(tokens, limit)
    assert grown.propose(tokens, limit) == draft
    assert len(draft) <= limit
    if draft:
        text = [*tokens, *draft]
        last = text[len(tokens) - NGRAM : len(tokens) + 1]
        assert any(text[i : i + NGRAM + 1] == last for i in range(len(tokens) - NGRAM))
