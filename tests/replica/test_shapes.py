"""The wire shapes: one contract, kept by both."""

from __future__ import annotations

import json

import pytest

from byte_tokenizer import byte_level, write_tokenizer
from penstock.engine.sampling import TokenLogprobs
from penstock.protocol.usage import Usage
from penstock.replica.generation import Piece
from penstock.replica.shapes import Asked, ChatShape, Collected, CompletionShape, Shape
from penstock.text.fragments import Content
from penstock.text.tokenizer import Tokenizer

TEXTS = ["a", "", 'quote " \\', "line\nend\r\u2028", "é😀", "\x00"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A token per byte."""
    return Tokenizer(write_tokenizer(byte_level(), tmp_path_factory.mktemp("tokenizer")))


def make(
    kind: str, tokenizer: Tokenizer, *, include_usage: bool = True, logprobs: int | None = None
) -> Shape:
    """A shape of one of the two kinds."""
    asked = Asked(
        model="m", tokenizer=tokenizer, id="x-1", created=7, include_usage=include_usage, logprobs=logprobs
    )
    return ChatShape(asked) if kind == "chat" else CompletionShape(asked, [None], 1)


@pytest.fixture(params=["chat", "completion"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each shape in turn."""
    return str(request.param)


def piece(text: str) -> Piece:
    """A piece that is text alone."""
    return Piece([Content(text)] if text else [])


def whole(shape: Shape, text: str, usage: Usage) -> bytes:
    """An answer in one piece."""
    answer = Collected(0, finish_reason="stop")
    answer.add(piece(text))
    return shape.whole([answer], usage)


@pytest.mark.parametrize("text", TEXTS)
def test_every_event_is_one_line_of_json(kind: str, tokenizer: Tokenizer, text: str) -> None:
    """Whatever the text: a line end would break the event in two."""
    shape, usage = make(kind, tokenizer), Usage.of(1, 2)
    bodies = [
        *shape.piece(0, piece(text)),
        shape.finish(0, "stop"),
        shape.usage(usage),
        whole(shape, text, usage),
    ]
    bodies += [data for _, data in shape.opening(0)]
    for body in bodies:
        assert not {*b"\r\n"} & set(body)
        assert json.loads(body)["model"] == "m"


def test_all_events_of_an_answer_have_one_identity(kind: str, tokenizer: Tokenizer) -> None:
    """Clients put chunks together by it."""
    shape = make(kind, tokenizer)
    bodies = [*shape.piece(0, piece("a")), shape.finish(0, "stop"), shape.usage(Usage.of(1, 1))]
    values = [json.loads(body) for body in bodies]
    assert {(value["id"], value["created"]) for value in values} == {("x-1", 7)}
    assert len({value["object"] for value in values}) == 1


@pytest.mark.parametrize("included", [True, False])
def test_usage_is_null_or_absent_before_the_end(kind: str, tokenizer: Tokenizer, included: bool) -> None:
    """Null only where the client asked for it at the end."""
    shape = make(kind, tokenizer, include_usage=included)
    for body in (*shape.piece(0, piece("a")), shape.finish(0, "length")):
        value = json.loads(body)
        assert ("usage" in value) is included
        assert value.get("usage") is None


def test_log_probabilities_name_tokens_by_text_and_bytes(tokenizer: Tokenizer) -> None:
    """A part of a character has bytes and no text of its own; what JSON cannot say is the least number."""
    first, second = "é".encode()
    said = TokenLogprobs(-0.5, ((first, -0.5), (ord("a"), -float("inf"))))
    (body,) = make("chat", tokenizer, logprobs=2).piece(0, Piece([], (first, said)))
    (entry,) = json.loads(body)["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["bytes"], entry["logprob"]) == ("\ufffd", [first], -0.5)
    assert [(top["token"], top["logprob"]) for top in entry["top_logprobs"]] == [
        ("\ufffd", -0.5),
        ("a", -9999.0),
    ]
    shape = make("completion", tokenizer, logprobs=2)
    events = [
        event for token in (first, second, ord("b")) for event in shape.piece(0, Piece([], (token, said)))
    ]
    parts = [json.loads(event)["choices"][0]["logprobs"] for event in events]
    assert [part["tokens"] for part in parts] == [["bytes:\\xc3"], ["bytes:\\xa9"], ["b"]]
    assert [part["text_offset"] for part in parts] == [[0], [1], [1]]
    assert parts[2]["top_logprobs"] == [{"bytes:\\xc3": -0.5, "a": -9999.0, "b": -0.5}]
