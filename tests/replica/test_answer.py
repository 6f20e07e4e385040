"""Answers over the wire: text, order, usage and reasons, for scripted tokens through the real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion as OpenAICompletion
from openai.types.chat import ChatCompletion as OpenAIChat
from openai.types.chat import ChatCompletionChunk as OpenAIChunk

from asgi_call import Answer
from penstock.protocol.stream import Event, State, StreamOrder
from penstock.text.tokenizer import Tokenizer
from scripted_replica import BLOCK_SIZE, END, FAIL, replica

HELLO = [*b"Hello, world", END]
# <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n, a token per byte
NUM_PROMPT_TOKENS = 1 + len("user\nhi") + 1 + 1 + 1 + len("assistant\n")
SECRET = b"secret detail"


def kinds(answer: Answer) -> list[Event]:
    """What each event of a stream tells."""
    found = []
    for data in answer.events:
        if data == b"[DONE]":
            found.append(Event.DONE)
            continue
        value = json.loads(data)
        if "error" in value:
            found.append(Event.ERROR)
        elif not value["choices"]:
            found.append(Event.USAGE)
        elif value["choices"][0]["finish_reason"] is not None:
            found.append(Event.FINISH)
        elif "role" in value["choices"][0].get("delta", {}):
            found.append(Event.ROLE)
        else:
            found.append(Event.CONTENT)
    return found


def check_order(answer: Answer) -> State:
    """Follows a stream through the table of legal orders to its end."""
    assert answer.status == 200
    assert answer.headers[b"content-type"].startswith(b"text/event-stream")
    assert answer.is_complete
    order = StreamOrder()
    for event in kinds(answer):
        order.advance(event)
    assert order.state.is_terminal
    return order.state


def values(answer: Answer) -> list[dict[str, Any]]:
    """The events' JSON, without the end mark."""
    return [json.loads(data) for data in answer.events if data != b"[DONE]"]


def streamed(answer: Answer) -> tuple[str, str]:
    """Text and finish reason of a good stream."""
    assert check_order(answer) is State.DONE
    choices = [value["choices"][0] for value in values(answer) if value["choices"]]
    text = "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices
    )
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert len(reasons) == 1
    return text, reasons[0]


def whole(answer: Answer) -> tuple[str, str]:
    """Text and finish reason of an answer in one piece."""
    assert answer.status == 200
    (choice,) = answer.json["choices"]
    return (choice["text"] if "text" in choice else choice["message"]["content"]), choice["finish_reason"]


# What the model writes, what is asked for, and the text, reason and counted tokens that follow.
CASES: dict[str, tuple[Sequence[int], dict[str, Any], str, str, int]] = {
    "end token": (HELLO, {}, "Hello, world", "stop", 13),
    "end token at once": ([END], {}, "", "stop", 1),
    "max_tokens": (HELLO, {"max_tokens": 5}, "Hello", "length", 5),
    "end token as the last allowed": (HELLO, {"max_tokens": 13}, "Hello, world", "stop", 13),
    "context used up": ([], {"max_tokens": 100}, "!" * 100, "length", 100),
    "stop string": (HELLO, {"stop": ", "}, "Hello", "stop", 7),
    "stop string of one token": (HELLO, {"stop": "H"}, "", "stop", 1),
    "stop string across tokens": (HELLO, {"stop": ["xyz", "lo, w"]}, "Hel", "stop", 8),
    "first of several": (HELLO, {"stop": ["world", "o", "llo"]}, "He", "stop", 5),
    "stop string in the last allowed token": (HELLO, {"stop": "llo", "max_tokens": 5}, "He", "stop", 5),
    "beginning of one at the end": (HELLO, {"stop": "world!"}, "Hello, world", "stop", 13),
    "beginning of one at the limit": (HELLO, {"stop": "llox", "max_tokens": 5}, "Hello", "length", 5),
    "stop string inside a token": ([259, END], {"stop": "ll"}, "he", "stop", 1),
    "characters of several tokens": ([*"é你😀".encode(), END], {}, "é你😀", "stop", 10),
    "a stop string of such": ([*"é你😀a".encode(), END], {"stop": "😀"}, "é你", "stop", 9),
    "a character cut by the limit": ([*"a你".encode()], {"max_tokens": 3}, "a\ufffd", "length", 3),
    "one that the flush completes": ([*b"a", 0xE4], {"max_tokens": 2, "stop": "\ufffd"}, "a", "stop", 2),
    "special tokens between": ([*b"a", END - 1, *b"b", END], {}, "ab", "stop", 4),
}  # fmt: skip


@pytest.mark.parametrize(("script", "fields", "text", "reason", "tokens"), CASES.values(), ids=CASES)
async def test_text_reason_and_usage_are_true(
    checkpoint: Path, script: Sequence[int], fields: dict[str, Any], text: str, reason: str, tokens: int
) -> None:
    """The same for chat and text completions, whole and streamed; an end token counts, text after a stop
    string does not."""
    fields = {"max_tokens": 50} | fields
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with replica(checkpoint, script) as desk:
        for call, num_prompt in ((desk.chat, NUM_PROMPT_TOKENS), (desk.complete, 2)):
            usage = {
                "prompt_tokens": num_prompt,
                "completion_tokens": tokens,
                "total_tokens": num_prompt + tokens,
            }
            one = await call(**fields).answer()
            assert whole(one) == (text, reason)
            assert one.json["usage"] == usage | {"prompt_tokens_details": {"cached_tokens": 0}}
            many = await call(**fields, **options).answer()
            assert streamed(many) == (text, reason)
            cached = (num_prompt - 1) // BLOCK_SIZE * BLOCK_SIZE  # the first call's, but for the last token
            assert values(many)[-1]["usage"] == usage | {"prompt_tokens_details": {"cached_tokens": cached}}


async def test_a_chat_without_limit_fills_the_context(checkpoint: Path) -> None:
    """And says so."""
    async with replica(checkpoint, [], max_model_len=60) as desk:
        answer = await desk.chat().answer()
        assert whole(answer) == ("!" * (60 - NUM_PROMPT_TOKENS), "length")
        assert answer.json["usage"]["total_tokens"] == 60


@pytest.mark.parametrize(("length", "expected"), [(2, 16), (50, 10), (59, 1)])
async def test_a_completion_without_limit_has_the_default_or_what_is_left(
    checkpoint: Path, length: int, expected: int
) -> None:
    """A default that nobody asked for is no reason to refuse."""
    async with replica(checkpoint, [], max_model_len=60) as desk:
        assert whole(await desk.complete("x" * length).answer()) == ("!" * expected, "length")


async def test_chat_answers_parse_with_openais_types(checkpoint: Path) -> None:
    """Strictly, from the wire."""
    async with replica(checkpoint, HELLO) as desk:
        answer = await desk.chat().answer()
        assert answer.headers[b"content-type"] == b"application/json"
        assert int(answer.headers[b"content-length"]) == len(answer.body)
        chat = OpenAIChat.model_validate_json(answer.body, strict=True)
        assert (chat.model, chat.choices[0].finish_reason) == ("scripted", "stop")
        stream = await desk.chat(stream=True).answer()
        chunks = [OpenAIChunk.model_validate_json(data, strict=True) for data in stream.events[:-1]]
        assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
        assert chunks[0].id != chat.id
        completion = OpenAICompletion.model_validate_json((await desk.complete().answer()).body, strict=True)
        assert completion.choices[0].text == "Hello, world"


async def test_a_chat_stream_begins_with_the_role_and_ends_with_done(checkpoint: Path) -> None:
    """One event per token with text, none without; usage is not spoken of unless asked for."""
    async with replica(checkpoint, HELLO) as desk:
        answer = await desk.chat(stream=True).answer()
        assert kinds(answer) == [Event.ROLE, *[Event.CONTENT] * 12, Event.FINISH, Event.DONE]
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert values(answer)[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert not any("usage" in value for value in values(answer))


async def test_a_completion_stream_has_no_role(checkpoint: Path) -> None:
    """Text, end, done."""
    async with replica(checkpoint, HELLO) as desk:
        answer = await desk.complete(stream=True).answer()
        assert kinds(answer) == [*[Event.CONTENT] * 12, Event.FINISH, Event.DONE]


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_included_usage_is_null_but_in_the_last_chunk(checkpoint: Path, kind: str) -> None:
    """Which has no choices and stands before the end mark."""
    async with replica(checkpoint, HELLO) as desk:
        answer = await getattr(desk, kind)(stream=True, stream_options={"include_usage": True}).answer()
        assert kinds(answer)[-3:] == [Event.FINISH, Event.USAGE, Event.DONE]
        *others, last = values(answer)
        assert all(value["usage"] is None for value in others)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 13


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_a_failure_before_the_first_token_has_a_status(
    checkpoint: Path, kind: str, stream: bool
) -> None:
    """A stream that has not begun answers like any request, without the engine's detail."""
    async with replica(checkpoint, [FAIL]) as desk:
        answer = await getattr(desk, kind)(stream=stream).answer()
        assert (answer.status, answer.error["code"]) == (500, "engine_error")
        assert answer.headers[b"content-type"] == b"application/json"
        assert SECRET not in answer.body
        assert (await desk.samples())[
            "/v1/chat/completions" if kind == "chat" else "/v1/completions", "500", "engine_error"
        ] == 1


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_a_failure_in_the_middle_is_one_event_and_no_end_mark(checkpoint: Path, kind: str) -> None:
    """The client has the text so far and sees that it is not all."""
    async with replica(checkpoint, [*b"abc", FAIL]) as desk:
        answer = await getattr(desk, kind)(stream=True).answer()
        assert check_order(answer) is State.FAILED
        assert kinds(answer)[-1] is Event.ERROR
        assert Event.FINISH not in kinds(answer)
        assert b"[DONE]" not in answer.body
        assert SECRET not in answer.body
        assert values(answer)[-1]["error"]["code"] == "engine_error"
        assert kinds(answer).count(Event.CONTENT) == 3
        assert [n for (_, status, code), n in (await desk.samples()).items() if code == "engine_error"] == [1]
        one = await getattr(desk, kind)().answer()
        assert (one.status, one.error["code"]) == (500, "engine_error")


class TokenizerWithDefect(Tokenizer):
    """Raises what no tokenizer should, for one letter."""

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        if ord("#") in ids:
            raise ZeroDivisionError(SECRET.decode())
        return super().decode(ids)


async def test_a_defect_of_ours_in_the_middle_is_one_event_too(checkpoint: Path) -> None:
    """The client sees an error in band, without details, and no end mark; our log has the traceback."""
    async with replica(checkpoint, [*b"ab#cd", END], kind=TokenizerWithDefect) as desk:
        call = desk.chat(stream=True)
        with pytest.raises(ZeroDivisionError):  # the server logs it and closes the connection
            await call.ended()
        answer = call.seen()
        assert check_order(answer) is State.FAILED
        assert values(answer)[-1]["error"]["code"] == "internal_error"
        assert SECRET not in answer.body
        assert (await desk.samples())["/v1/chat/completions", "200", "internal_error"] == 1
        whole_answer = await desk.chat().answer()
        assert (whole_answer.status, whole_answer.error["code"]) == (500, "internal_error")
        assert SECRET not in whole_answer.body


async def test_a_failed_step_leaves_the_next_request_alone(checkpoint: Path) -> None:
    """The engine goes on."""
    async with replica(checkpoint, lambda prompt: [FAIL] if "bad" in prompt else HELLO) as desk:
        assert (await desk.chat("bad").answer()).status == 500
        assert whole(await desk.chat("good").answer()) == ("Hello, world", "stop")


async def test_an_engine_that_is_not_running_is_an_error_with_a_status(checkpoint: Path) -> None:
    """Also for the probes."""
    async with replica(checkpoint, HELLO) as desk:
        await desk.model.service.stop()
        assert (await desk.chat().answer()).status == 500
        assert (await desk.get("/health")).status == 503
        assert (await desk.get("/livez")).status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_while_running_frees_its_sequence_within_one_step(
    checkpoint: Path, stream: bool
) -> None:
    """The step under way is the last that computes for it; the other client's answer is whole."""
    async with replica(checkpoint, []) as desk:
        desk.forward.hold()
        leaving = desk.chat(stream=stream, max_tokens=90)
        for _ in range(4):
            await desk.forward.begun()
            desk.forward.let(1)
        await desk.forward.begun()
        leaving.leave()
        await leaving.ended()
        steps_before = len(desk.forward.ran)
        staying = desk.chat(max_tokens=5)
        desk.forward.let()
        assert whole(await staying.answer()) == ("!" * 5, "length")
        assert all(1 not in ids for ids in desk.forward.ran[steps_before:])
        assert leaving.sent == [] or not any(b"[DONE]" in m.get("body", b"") for m in leaving.sent)
        ends = await desk.samples()
        assert sum(n for (_, _, code), n in ends.items() if code == "client_gone") == 1
        assert desk.model.service.num_requests == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_the_queue_is_never_computed(checkpoint: Path, stream: bool) -> None:
    """Its place is free for the next one."""
    async with replica(checkpoint, [], max_sequences=1, max_requests=2) as desk:
        desk.forward.hold()
        running = desk.chat(max_tokens=3)
        await desk.forward.begun()
        waiting = desk.chat(stream=stream, max_tokens=3)
        while desk.model.service.num_requests < 2:  # noqa: ASYNC110 (nobody tells that it is queued)
            await asyncio.sleep(0)
        waiting.leave()
        await waiting.ended()
        assert waiting.sent == []
        desk.forward.let()
        assert whole(await running.answer()) == ("!!!", "length")
        assert whole(await desk.chat(max_tokens=3).answer()) == ("!!!", "length")
        assert all(2 not in ids for ids in desk.forward.ran)
        assert (await desk.samples())["/v1/chat/completions", "499", "client_gone"] == 1


async def test_a_stop_string_frees_the_sequence_too(checkpoint: Path) -> None:
    """The engine would write on to the limit; it is told not to."""
    async with replica(checkpoint, [*b"ab!"]) as desk:
        desk.forward.hold()
        call = desk.chat(stop="b", max_tokens=80)
        for _ in range(2):
            await desk.forward.begun()
            desk.forward.let(1)
        assert whole(await call.answer()) == ("a", "stop")
        steps_before = len(desk.forward.ran)
        desk.forward.let()
        await desk.chat(max_tokens=1).answer()
        # One step may have begun before the answer was complete and one between the cancellation and here.
        assert sum(1 in ids for ids in desk.forward.ran) <= 3
        assert all(1 not in ids for ids in desk.forward.ran[steps_before + 1 :])


async def test_a_hundred_streams_end_once_each(checkpoint: Path) -> None:
    """Good ones, failing ones, clients that leave; a pool too small for all at once; nothing is left."""

    def script(prompt: str) -> Sequence[int]:
        number = int(prompt.split()[1])
        text = f"answer {number} ".encode() * (number % 5 + 1)
        return [*text, FAIL] if number % 10 == 3 else [*text, END]

    async with replica(checkpoint, script, max_sequences=12, num_blocks=90) as desk:
        calls = [desk.chat(f" {number} ", stream=True, max_tokens=70) for number in range(100)]
        for call in calls[7::10]:
            call.leave()
        await asyncio.gather(*(call.ended() for call in calls))
        num_failed = 0
        for number, call in enumerate(calls):
            if number % 10 == 7:
                assert not any(b"[DONE]" in message.get("body", b"") for message in call.sent)
                continue
            answer = await call.answer()
            if answer.status == 500:
                num_failed += 1
                continue
            state = check_order(answer)
            assert sum(kind in (Event.DONE, Event.ERROR) for kind in kinds(answer)) == 1
            text = f"answer {number} " * (number % 5 + 1)
            if state is State.DONE:
                assert streamed(answer) == (text[:70], "stop" if len(text) < 70 else "length")
            else:
                num_failed += 1
        assert num_failed >= 10
        assert desk.model.service.num_requests == 0
