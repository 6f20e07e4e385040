"""Answers of models that call tools, and what a parser makes of them in any number of pieces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from penstock.protocol.tools import FunctionDefinition, Tool
from penstock.text.fragments import CallArguments, CallStart, Content, Fragment, OutputParser, merged


def tool(name: str, parameters: dict[str, Any] | None = None) -> Tool:
    """A definition."""
    return Tool(type="function", function=FunctionDefinition(name=name, parameters=parameters))


TOOLS = (tool("f"), tool("get_weather"), tool("get"))


def parse(parser: OutputParser, *pieces: str) -> list[Fragment]:
    """The merged fragments of an answer, ids of calls blanked; nothing may come after the end."""
    fragments = [fragment for piece in pieces for fragment in parser.push(piece)]
    fragments += parser.flush()
    assert parser.flush() == []
    assert parser.has_calls == any(isinstance(fragment, CallStart) for fragment in fragments)
    return [
        CallStart(fragment.index, "", fragment.name) if isinstance(fragment, CallStart) else fragment
        for fragment in merged(fragments)
    ]


def cut(text: str, places: Sequence[int]) -> list[str]:
    """The text in pieces, cut at these places, which may lie beyond its end."""
    bounds = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


def call(index: int, name: str, arguments: str) -> list[Fragment]:
    """The fragments of one call."""
    return [CallStart(index, "", name), *([CallArguments(index, arguments)] if arguments else [])]


def calls(fragments: Sequence[Fragment]) -> list[tuple[str, str]]:
    """Names and arguments."""
    starts = [fragment for fragment in fragments if isinstance(fragment, CallStart)]
    assert [start.index for start in starts] == list(range(len(starts)))
    return [
        (
            start.name,
            "".join(
                piece.text
                for piece in fragments
                if isinstance(piece, CallArguments) and piece.index == start.index
            ),
        )
        for start in starts
    ]


def content(fragments: Sequence[Fragment]) -> str:
    """All the content."""
    return "".join(fragment.text for fragment in fragments if isinstance(fragment, Content))
