"""Chat answers, whole and in chunks, against OpenAI's own types."""

from __future__ import annotations

import json

import msgspec
import pytest
from openai.types.chat import ChatCompletion as OpenAICompletion
from openai.types.chat import ChatCompletionChunk as OpenAIChunk

from penstock.protocol.chat import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    Message,
    read_chat_request,
)
from penstock.protocol.usage import Usage


def answer() -> ChatCompletion:
    """A whole answer."""
    choice = Choice(message=AnswerMessage(content="hi"), finish_reason="stop")
    return ChatCompletion(id="chatcmpl-1", created=5, model="m", choices=[choice], usage=Usage.of(2, 3))


def test_an_answer_parses_strictly_and_has_nothing_else() -> None:
    """With OpenAI's own type, which keeps unknown fields aside."""
    parsed = OpenAICompletion.model_validate_json(msgspec.json.encode(answer()), strict=True)
    (choice,) = parsed.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("hi", "assistant", "stop")
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 5
    assert not any((parsed.model_extra, choice.model_extra, choice.message.model_extra))
    assert not parsed.usage.model_extra


@pytest.mark.parametrize(
    ("delta", "reason", "expected"),
    [
        (Delta(role="assistant", content=""), None, {"role": "assistant", "content": ""}),
        (Delta(content="hi"), None, {"content": "hi"}),
        (Delta(), "stop", {}),
    ],
)
def test_chunks_parse_strictly_and_have_nothing_else(
    delta: Delta, reason: str | None, expected: dict[str, str]
) -> None:
    """A delta has only what it adds; `usage` is left out where it was not asked for."""
    body = msgspec.json.encode(
        ChatChunk(id="c", created=5, model="m", choices=[ChunkChoice(delta=delta, finish_reason=reason)])
    )
    parsed = OpenAIChunk.model_validate_json(body, strict=True)
    assert parsed.choices[0].delta.model_dump(exclude_unset=True) == expected
    assert parsed.choices[0].finish_reason == reason
    assert "usage" not in json.loads(body)
    assert not any((parsed.model_extra, parsed.choices[0].model_extra, parsed.choices[0].delta.model_extra))


def test_the_usage_chunk_parses_strictly() -> None:
    """No choices; with `include_usage` the other chunks carry a null."""
    last = ChatChunk(id="c", created=5, model="m", choices=[], usage=Usage.of(1, 2))
    parsed = OpenAIChunk.model_validate_json(msgspec.json.encode(last), strict=True)
    assert parsed.choices == []
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 3
    other = ChatChunk(id="c", created=5, model="m", choices=[], usage=None)
    assert json.loads(msgspec.json.encode(other))["usage"] is None


def test_an_answer_is_accepted_as_history() -> None:
    """What the client library gives, dumped whole with all its nulls, goes back in."""
    body = msgspec.json.encode(answer())
    message = OpenAICompletion.model_validate_json(body).choices[0].message.model_dump()
    assert len(message) > 3
    request = read_chat_request(json.dumps({"model": "m", "messages": [message]}).encode())
    assert request.messages == [Message(role="assistant", content="hi")]
