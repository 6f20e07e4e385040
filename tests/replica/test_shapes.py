"""The wire shapes: one contract, kept by both."""

from __future__ import annotations

import json

import pytest

from penstock.protocol.usage import Usage
from penstock.replica.shapes import ChatShape, CompletionShape, Shape

TEXTS = ["a", "", 'quote " \\', "line\nend\r\u2028", "é😀", "\x00"]


@pytest.fixture(params=[ChatShape, CompletionShape])
def shape(request: pytest.FixtureRequest) -> Shape:
    """Each shape in turn."""
    made: Shape = request.param("m", include_usage=True)
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_every_event_is_one_line_of_json(shape: Shape, text: str) -> None:
    """Whatever the text: a line end would break the event in two."""
    usage = Usage.of(1, 2)
    bodies = [shape.piece(text), shape.finish("stop"), shape.usage(usage), shape.whole(text, "stop", usage)]
    bodies += [opening] if (opening := shape.opening()) is not None else []
    for body in bodies:
        assert not {*b"\r\n"} & set(body)
        assert json.loads(body)["model"] == "m"


def test_all_events_of_an_answer_have_one_identity(shape: Shape) -> None:
    """Clients put chunks together by it; another answer has another."""
    values = [
        json.loads(body) for body in (shape.piece("a"), shape.finish("stop"), shape.usage(Usage.of(1, 1)))
    ]
    assert len({(value["id"], value["created"], value["object"]) for value in values}) == 1
    assert json.loads(type(shape)("m", include_usage=False).piece("a"))["id"] != values[0]["id"]  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [ChatShape, CompletionShape])
@pytest.mark.parametrize("included", [True, False])
def test_usage_is_null_or_absent_before_the_end(kind: type, included: bool) -> None:
    """Null only where the client asked for it at the end."""
    shape = kind("m", include_usage=included)
    for body in (shape.piece("a"), shape.finish("length")):
        value = json.loads(body)
        assert ("usage" in value) is included
        assert value.get("usage") is None
