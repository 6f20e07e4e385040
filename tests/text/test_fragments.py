"""Fragments are joined where they continue one another, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.text.fragments import CallArguments, CallStart, Content, Fragment, PlainText, Reasoning, merged

TEXT = st.text("ab", max_size=3)
FRAGMENTS = st.lists(
    st.builds(Content, TEXT)
    | st.builds(Reasoning, TEXT)
    | st.builds(CallArguments, st.integers(0, 1), TEXT)
    | st.builds(CallStart, st.integers(0, 1), st.just("id"), st.just("f")),
    max_size=12,
)


def joined(left: Fragment, right: Fragment) -> Fragment | None:
    """The definition, for two."""
    if isinstance(left, CallArguments) and isinstance(right, CallArguments) and left.index == right.index:
        return CallArguments(left.index, left.text + right.text)
    for kind in (Content, Reasoning):
        if isinstance(left, kind) and isinstance(right, kind):
            return kind(left.text + right.text)
    return None


@given(FRAGMENTS)
def test_neighbours_of_a_kind_become_one(fragments: list[Fragment]) -> None:
    """Arguments only those of one call; starts of calls never; the order stays."""
    expected: list[Fragment] = []
    for fragment in fragments:
        both = joined(expected[-1], fragment) if expected else None
        expected[-1:] = [both] if both is not None else [*expected[-1:], fragment]
    assert merged(fragments) == expected
    assert merged(merged(fragments)) == expected


def test_plain_text_is_content_as_it_comes() -> None:
    """For answers in which nothing is looked for."""
    parser = PlainText()
    assert parser.push("<tool_call>") == [Content("<tool_call>")]
    assert parser.push("") == parser.flush() == []
    assert not parser.has_calls
    assert not parser.is_complete
