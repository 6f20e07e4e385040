"""A form behind thoughts: free up to the closing tag, held behind it, drafts included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from penstock.text.reasoning import THINK
from penstock.text.thinking import AfterReasoning, Mask

OPEN, CLOSE, A, B = 40, 41, 1, 2
SIZE = 64
ALL = set(range(SIZE))


class Alternating:
    """A form: A, B, A, B, ..."""

    def fill(self, masks: Mask, generated: Sequence[int], draft: Sequence[int]) -> None:
        """See Constraint."""
        for i in range(len(draft) + 1):
            count = len(generated) + i
            masks[i, 0] = 1 << (A, B)[count % 2]
            if i < len(draft) and draft[i] != (A, B)[count % 2]:
                return


def allowed(constraint: AfterReasoning, generated: list[int], draft: tuple[int, ...] = ()) -> list[set[int]]:
    """The allowed tokens of each row."""
    masks = np.zeros((1 + len(draft), SIZE // 32), dtype=np.int32)
    constraint.fill(masks, generated, draft)
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    return [set(np.nonzero(row)[0].tolist()) for row in bits]


def new(*, starts_inside: bool) -> AfterReasoning:
    """A constraint at its beginning."""
    return AfterReasoning(Alternating(), OPEN, CLOSE, starts_inside=starts_inside)


def test_an_answer_begins_with_the_form_or_with_thoughts() -> None:
    """What it begins with decides."""
    constraint = new(starts_inside=False)
    assert allowed(constraint, []) == [{A, OPEN}]
    assert allowed(constraint, [A]) == [{B}]
    constraint = new(starts_inside=False)
    assert allowed(constraint, []) == [{A, OPEN}]
    assert allowed(constraint, [OPEN]) == [ALL]
    assert allowed(constraint, [OPEN, 7, 9]) == [ALL]
    assert allowed(constraint, [OPEN, 7, 9, CLOSE]) == [{A}]
    assert allowed(constraint, [OPEN, 7, 9, CLOSE, A]) == [{B}]


def test_a_prompt_may_have_opened_the_thoughts() -> None:
    """Then nothing is held before they end."""
    constraint = new(starts_inside=True)
    assert allowed(constraint, []) == [ALL]
    assert allowed(constraint, [A, CLOSE]) == [{A}]


@pytest.mark.parametrize(
    ("generated", "draft", "rows"),
    [
        ([OPEN, 7], (8, 9), [ALL, ALL, ALL]),
        ([OPEN, 7], (CLOSE, A, B), [ALL, {A}, {B}, {A}]),
        ([OPEN, 7], (8, CLOSE), [ALL, ALL, {A}]),
        ([], (OPEN, 8, CLOSE, A), [{A, OPEN}, ALL, ALL, {A}, {B}]),
        ([], (A, B), [{A, OPEN}, {B}, {A}]),
        ([A], (B,), [{B}, {A}]),
    ],
    ids=str,
)
def test_drafts_are_held_as_the_answer_would_be(
    generated: list[int], draft: tuple[int, ...], rows: list[set[int]]
) -> None:
    """Also where a draft opens or closes the thoughts."""
    assert allowed(new(starts_inside=False), generated, draft) == rows


def test_without_a_token_for_the_tag_the_form_holds_from_the_beginning() -> None:
    """Letters cannot be told from the answer's own."""
    assert AfterReasoning.around(Alternating, THINK, {}, starts_inside=True) is Alternating
    made = AfterReasoning.around(Alternating, THINK, {THINK.closing: CLOSE}, starts_inside=False)()
    masks = np.zeros((1, 2), dtype=np.int32)
    made.fill(masks, [], ())
    assert masks[0, 0] == 1 << A
