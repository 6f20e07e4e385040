"""The format of tool calls is seen in the chat template, or named."""

from __future__ import annotations

from pathlib import Path

import pytest

from byte_tokenizer import CHATML, byte_level, write_tokenizer
from penstock.text.tokenizer import Tokenizer
from penstock.text.tools.choice import choose_tool_format, tool_format

HERMES = '{% for call in message.tool_calls %}<tool_call>\\n{"name": "{{ call.function.name }}"{% endfor %}'
XML = (
    "<tool_call>\\n<function={{ call.name }}>{% for key in call.arguments %}<parameter={{ key }}>{% endfor %}"
)
KEYS = "<tool_call>{{ call.name }}<arg_key>{{ key }}</arg_key>"
LLAMA31 = "{{- '<|python_tag|>' + call.name }}{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}"
LLAMA32 = "{{- '<|start_header_id|>assistant' }}{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}"
MISTRAL = '{{- "[TOOL_CALLS] [" }}{{ call.function | tojson }}'
OTHER = "{{ '<|channel|>commentary to=functions.' + call.name }}{{ '\"parameters\": ' }}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level, with one mark as a token."""
    rust = byte_level()
    rust.add_special_tokens(["[ARGS]"])
    return Tokenizer(write_tokenizer(rust, tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize(
    ("source", "name"),
    [(HERMES, "hermes"), (XML, None), (KEYS, None), (LLAMA31, "llama3_json"), (LLAMA32, "llama3_json"),
     (MISTRAL, "mistral"), (OTHER, None), (CHATML, None), ("", None), (None, None)],
)  # fmt: skip
def test_a_template_shows_its_format(tokenizer: Tokenizer, source: str | None, name: str | None) -> None:
    """One that has none of ours has none: calls in another format must come out as text."""
    found = choose_tool_format(source, tokenizer)
    assert (found and found.name) == name
    same = tool_format("auto", source, tokenizer)
    assert type(same) is type(found)


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral"])
def test_a_format_can_be_named(tokenizer: Tokenizer, name: str) -> None:
    """Whatever the template shows."""
    found = tool_format(name, MISTRAL, tokenizer)
    assert found is not None
    assert found.name == name
    assert tool_format("none", MISTRAL, tokenizer) is None


def test_a_format_knows_the_tokenizers_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Mistral's grammar asks for the newer form where there is a token for it."""
    from tool_answers import TOOLS

    newer = tool_format("mistral", None, tokenizer)
    older = tool_format("mistral", None, Tokenizer(write_tokenizer(byte_level(), tmp_path)))
    assert newer is not None
    assert older is not None
    assert f"<[{tokenizer.added_tokens['[ARGS]']}]>" in newer.grammar(TOOLS)
    assert '"[TOOL_CALLS]" " ["' in older.grammar(TOOLS)
    assert newer.visible_tokens == {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"}
