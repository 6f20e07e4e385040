"""The table of fields in docs/api.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams

from penstock.protocol import chat, completions

PAGE = Path(__file__).parent.parent.parent / "docs" / "api.md"
ROW = re.compile(r"^\| `(\w+)` \| (yes|no|-) \| (yes|no|-) \|", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))
ENDPOINTS = {
    "chat": (1, chat.ChatRequest, chat.UNBUILT, ChatParams),
    "completions": (2, completions.CompletionRequest, completions.UNBUILT, TextParams),
}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_every_field_is_in_the_table_as_it_is_in_the_code(name: str) -> None:
    """Built, refused, and nothing else."""
    column, request, unbuilt, _ = ENDPOINTS[name]
    said = {mark: {row[0] for row in ROWS if row[column] == mark} for mark in ("yes", "no")}
    assert said["yes"] == {field.encode_name for field in msgspec.structs.fields(request)}
    assert said["no"] == set(unbuilt)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_every_field_of_openais_client_is_in_the_table(name: str) -> None:
    """Of the installed version; `stream` is in its variants."""
    column, _, _, theirs = ENDPOINTS[name]
    listed = {row[0] for row in ROWS if row[column] != "-"}
    assert {*theirs.__annotations__, "stream"} <= listed


def test_a_field_has_one_row() -> None:
    """Two might say different things."""
    assert len(ROWS) == len({row[0] for row in ROWS})
