"""The official client against a live `penstock up`, unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

ASK: dict[str, Any] = {"model": "little", "messages": [{"role": "user", "content": "Say something."}]}
GREEDY: dict[str, Any] = {**ASK, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    """The one that is served, by its folder's name."""
    assert [model.id for model in client.models.list()] == ["little"]
    assert client.models.retrieve("little").owned_by == "penstock"


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    """With the fields that applications read."""
    done = client.chat.completions.create(**GREEDY)
    (choice,) = done.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert done.usage is not None
    assert done.usage.completion_tokens == 12
    assert done.usage.total_tokens == done.usage.prompt_tokens + 12


def test_a_streamed_chat_is_the_same_text(client: openai.OpenAI) -> None:
    """Role first, text in pieces, one finish, usage last when asked for."""
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(
        client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_has_usage_only_on_request(client: openai.OpenAI) -> None:
    """As OpenAI does it."""
    chunks = list(client.chat.completions.create(**GREEDY, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_text_is_completed(client: openai.OpenAI) -> None:
    """Streamed and not, the same."""
    asked: dict[str, Any] = {"model": "little", "prompt": "Once", "temperature": 0, "max_tokens": 9}
    done = client.completions.create(**asked)
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    assert done.choices[0].text == text
    assert text
    assert done.usage is not None
    assert done.usage.completion_tokens == 9


def test_a_stop_string_ends_the_answer(client: openai.OpenAI) -> None:
    """And is not part of it."""
    text = client.chat.completions.create(**GREEDY).choices[0].message.content or ""
    stop = text[4:6]
    stopped = client.chat.completions.create(**GREEDY, stop=stop)
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    """And another seed does not."""

    def sample(seed: int) -> str | None:
        answer = client.chat.completions.create(**ASK, temperature=1, max_tokens=24, seed=seed)
        return answer.choices[0].message.content

    assert sample(5) == sample(5)
    assert sample(5) != sample(6)


def test_a_bad_value_is_a_bad_request(client: openai.OpenAI) -> None:
    """With the field at fault, where the client puts it."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, temperature=9)
    assert (caught.value.param, caught.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, verbosity="low")
    assert (caught.value.param, caught.value.code) == ("verbosity", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, extra_body={"temprature": 1})
    assert (caught.value.param, caught.value.code) == ("temprature", "unknown_parameter")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, max_tokens=100_000, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    """Asked for and looked up."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**ASK, "model": "gpt-4o"})
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


async def test_a_hundred_streams_at_once_all_end(address: str) -> None:
    """Each with one finish and all its tokens, sampled and greedy mixed."""

    async with openai.AsyncOpenAI(
        base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=60
    ) as client:

        async def one(number: int) -> tuple[list[str], int]:
            stream = await client.chat.completions.create(
                **{**ASK, "max_tokens": 4 + number % 5, "temperature": number % 2, "seed": number},
                stream=True,
                stream_options={"include_usage": True},
            )
            reasons, tokens = [], 0
            async for chunk in stream:
                reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
                tokens += chunk.usage.completion_tokens if chunk.usage else 0
            return reasons, tokens

        for number, (reasons, tokens) in enumerate(await asyncio.gather(*map(one, range(100)))):
            assert len(reasons) == 1
            assert tokens == 4 + number % 5 or reasons == ["stop"]


async def test_a_stream_can_be_abandoned(address: str) -> None:
    """Closing it early leaves a client that works."""
    async with openai.AsyncOpenAI(
        base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=60
    ) as client:
        stream = await client.chat.completions.create(**{**GREEDY, "max_tokens": 4000}, stream=True)
        async for _ in stream:
            break
        await stream.close()
        assert (await client.chat.completions.create(**GREEDY)).choices[0].message.content
