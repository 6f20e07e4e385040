"""A JSON value in pieces against Python's own reader."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.text.tools.json_value import MAX_DEPTH, JsonValue
from tool_answers import cut

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
WORDS = ["{", "}", "[", "]", ",", ":", " ", "\n", '"', "\\", "\\u12", "aF", '"a"', "-", "0", "1", "12", ".",
         "e", "E+", "true", "tru", "null", "false", "NaN", "Infinity", "é", "\x00", "\x1f", "\t"]  # fmt: skip


def read(*pieces: str) -> tuple[str, str, bool]:
    """What was read, what was not, and whether it is a value. Numbers end where something follows."""
    value, taken, left = JsonValue(), "", ""
    for piece in pieces:
        at = value.feed(piece, 0)
        taken, left = taken + piece[:at], left + piece[at:]
    return taken, left, value.is_complete


def refuse(name: str) -> NoReturn:
    raise ValueError(name)


def reference(text: str) -> int | None:
    """The end of the value that the text begins with; None if it begins with none, or may not end with it."""
    try:
        _, end = json.JSONDecoder(parse_constant=refuse).raw_decode(text)
    except ValueError:
        return None
    return end


@given(
    JSON, st.sampled_from([None, 1]), st.booleans(), st.lists(st.integers(0, 200)), st.sampled_from("} ,x")
)
def test_every_value_is_read_to_its_end(
    value: Any, indent: int | None, ascii_only: bool, places: list[int], after: str
) -> None:
    """However it is laid out and cut."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read(*cut(text + after, places)) == (text, after, True)


@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join), st.lists(st.integers(0, 30)))
def test_anything_is_read_as_far_as_python_reads_it(text: str, places: list[int]) -> None:
    """Complete where Python's reader finds a value, and never elsewhere."""
    taken, left, is_complete = read(*cut(text + "~", places))
    assert taken + left == text + "~"
    end = reference(text + "~") if text[:1].strip() else None
    # Python's reader stops before a point or a power that leads nowhere, which breaks a number here.
    if is_complete:
        assert len(taken) == end
    elif end is not None:
        assert text[end] in ".eE"


@pytest.mark.parametrize(
    ("text", "stops_at"),
    [("", 0), (" 1", 0), ("[01]", 2), ("-x", 1), ("1.x", 2), ("1e+ ", 3), ("tru ", 3), ("nul]", 3),
     ('"\n"', 1), ('"\\x"', 2), ('"\\u12g"', 5), ("{,", 1), ('{"a" 1}', 5), ('{"a":1,}', 7),
     ("[1,]", 3), ("[1 2]", 3), ("[}", 1), ('{"a":1]', 6), ("}", 0), ("'a'", 0), ('{"a":\x0c1}', 5)],
)  # fmt: skip
def test_a_broken_value_is_read_up_to_what_breaks_it(text: str, stops_at: int) -> None:
    """The character itself stays unread, however the text is cut."""
    for pieces in ([text], list(text)):
        assert read(*pieces) == (text[:stops_at], text[stops_at:], False)


def test_nesting_has_a_bound() -> None:
    """What is kept of a value is its open brackets."""
    assert read("[" * MAX_DEPTH + "]" * MAX_DEPTH)[2]
    assert read("[" * (MAX_DEPTH + 1)) == ("[" * MAX_DEPTH, "[", False)


def test_a_surrogate_that_is_written_as_an_escape_is_json() -> None:
    """The grammar of JSON allows it; what it means is the reader's business."""
    assert read('"\\ud800"') == ('"\\ud800"', "", True)
