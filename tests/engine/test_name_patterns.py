"""Regular expressions from foreign files, matched at arm's length."""

from __future__ import annotations

import pytest

from penstock.engine.name_patterns import MAX_PATTERN_LENGTH, first_matches

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "lm_head"]


def test_the_first_pattern_that_matches_a_whole_name_counts() -> None:
    """Not one that matches a part of it."""
    patterns = ["q_proj", r".*\.(up|down)_proj", r"model\.layers\..*", "lm_hea"]
    assert first_matches(patterns, NAMES) == [2, 1, None]


@pytest.mark.parametrize(
    "pattern", ["(", "*", "[z-a]", "(?P<1>x)", "\\", "(" * 900, "a{99999999999999999999}"]
)
def test_what_is_no_expression_is_refused(pattern: str) -> None:
    """With what is wrong about it."""
    with pytest.raises(ValueError, match="no regular expression"):
        first_matches([pattern], NAMES)


def test_an_expression_that_would_take_for_ever_does_not() -> None:
    """The process that matches it is ended."""
    with pytest.raises(ValueError, match="took longer than 1 s"):
        first_matches([r"(([a-z_.0-9]+)+)+!"], NAMES, limit_s=1.0)


def test_a_long_expression_is_refused() -> None:
    """Nobody needs one."""
    assert first_matches(["x" * MAX_PATTERN_LENGTH], NAMES) == [None] * 3
    with pytest.raises(ValueError, match="longer than"):
        first_matches(["x" * (MAX_PATTERN_LENGTH + 1)], NAMES)
