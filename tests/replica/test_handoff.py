"""A request goes on in another engine: what both say, put together, is what one would have said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asgi_call import Answer
from scripted_replica import END, Desk, replica

ANSWER = [*"Hé, 你好. Stop here".encode(), END]
ID = b"req-to-move"


def script(prompt: str) -> Sequence[int]:
    """The same answer to everything."""
    return ANSWER


def request(kind: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and body of a request."""
    base = {"model": "scripted", "max_tokens": 60, **fields}
    if kind == "chat":
        return "/v1/chat/completions", {**base, "messages": [{"role": "user", "content": "hi"}]}
    return "/v1/completions", {"prompt": "hi", **base}


def texts(body: bytes) -> dict[int, str]:
    """The text of each choice in a stream's bytes, with its finish reason."""
    found: dict[int, str] = {}
    for line in body.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
                end = "" if choice["finish_reason"] is None else f"[{choice['finish_reason']}]"
                found[choice["index"]] = found.get(choice["index"], "") + text + end
    return found


async def interrupt(desk: Desk, path: str, body: dict[str, Any], steps: int) -> tuple[Answer, Answer]:
    """Lets a request run for some steps, then takes it away: what was answered to the export, and to it."""
    paused = desk.forward.pause(steps)
    asked = asyncio.create_task(desk.call("POST", path, body, headers=[(b"x-request-id", ID)]).answer())
    pausing = asyncio.create_task(paused.wait())
    await asyncio.wait({asked, pausing}, return_when=asyncio.FIRST_COMPLETED)
    pausing.cancel()
    taking = asyncio.create_task(
        desk.call("POST", "/v1/handoff/export", {"request_id": ID.decode()}).answer()
    )
    desk.forward.let()
    return await taking, await asked


CASES: list[tuple[str, dict[str, Any]]] = [
    ("chat", {}),
    ("chat", {"n": 2}),
    ("chat", {"stop": "here"}),
    ("chat", {"stop": ["é, ", "nothing"]}),
    ("complete", {}),
    ("complete", {"n": 2, "echo": True}),
    ("complete", {"prompt": ["hi", "you"], "stop_token_ids": [ord("S")]}),
    ("complete", {"max_tokens": 7}),
]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 14, 22])
@pytest.mark.parametrize(("kind", "fields"), CASES, ids=str)
async def test_a_stream_goes_on_where_it_was(
    checkpoint: Path, kind: str, fields: dict[str, Any], steps: int
) -> None:
    """Cut after any number of steps: inside characters, inside stop strings, at the end."""
    path, body = request(kind, {**fields, "stream": True})
    async with replica(checkpoint, script) as whole:
        expected = texts((await whole.call("POST", path, body).answer()).body)
    async with replica(checkpoint, script) as first, replica(checkpoint, script) as second:
        state, before = await interrupt(first, path, body, steps)
        if state.status == 404:  # it had ended
            assert texts(before.body) == expected
            return
        after = await second.call("POST", "/v1/handoff/resume", state.json).answer()
        assert after.status == 200
        said = texts(before.body)
        for index, text in texts(after.body).items():
            said[index] = said.get(index, "") + text
        assert said == expected
        if before.status == 200:  # done with it only if a stop string was among what had been generated
            assert (b'"code":"moved"' in before.body) is not (b"[DONE]" in before.body)
            assert b"[DONE]" not in before.body or not texts(after.body)
        else:
            assert (before.status, before.error["code"]) == (409, "moved")


@pytest.mark.parametrize("steps", [1, 6, 15])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [*CASES, ("chat", {"logprobs": True, "top_logprobs": 2}), ("complete", {"logprobs": 2, "echo": True})],
    ids=str,
)
async def test_an_answer_in_one_piece_is_whole(
    checkpoint: Path, kind: str, fields: dict[str, Any], steps: int
) -> None:
    """All of it comes from the second engine, with the usage of both."""
    path, body = request(kind, fields)
    async with replica(checkpoint, script) as whole:
        expected = (await whole.call("POST", path, body).answer()).json
    async with replica(checkpoint, script) as first, replica(checkpoint, script) as second:
        state, before = await interrupt(first, path, body, steps)
        if state.status == 404:
            assert before.json["choices"] == expected["choices"]
            return
        assert (before.status, before.error["code"]) == (409, "moved")
        after = (await second.call("POST", "/v1/handoff/resume", state.json).answer()).json
        assert after["id"] == state.json["id"]
        assert after["choices"] == expected["choices"]
        assert after["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"]
        assert after["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]


async def test_what_does_not_run_cannot_be_exported(checkpoint: Path) -> None:
    """Unknown ids, and those that have ended."""
    async with replica(checkpoint, script) as desk:
        await desk.call("POST", *request("chat", {}), headers=[(b"x-request-id", ID)]).answer()
        for wanted in (ID.decode(), "never"):
            answer = await desk.call("POST", "/v1/handoff/export", {"request_id": wanted}).answer()
            assert (answer.status, answer.error["code"]) == (404, "request_not_found")
        answer = await desk.call("POST", "/v1/handoff/export", {"id": "x"}).answer()
        assert (answer.status, answer.error["param"]) == (400, "id")


STATE: dict[str, Any] = {
    "endpoint": "complete",
    "request": request("complete", {})[1],
    "prompts": [[104, 105]],
    "seed": 5,
    "max_tokens": [60],
    "id": "cmpl-1",
    "created": 1,
    "answers": [{"tokens": [72]}],
}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"version": 2}, "version"),
        ({"endpoint": "images"}, "endpoint"),
        ({"prompts": []}, "max_tokens"),
        ({"prompts": [[1], [2]], "max_tokens": [5, 5]}, "prompts"),
        ({"prompts": [[-1]]}, "prompts[0][0]"),
        ({"prompts": [[999_999]]}, "tokens"),
        ({"answers": [{"tokens": [999_999]}]}, "tokens"),
        ({"answers": []}, "answers"),
        ({"answers": [{"tokens": []}, {"tokens": []}]}, "answers"),
        ({"max_tokens": [100_000]}, "max_tokens"),
        ({"max_tokens": []}, "max_tokens"),
        ({"request": {"model": "scripted"}}, "prompt"),
        ({"request": {"model": "other", "prompt": "x"}}, "model"),
        ({"surprise": 1}, "surprise"),
        ({"answers": [{"tokens": [72], "surprise": 1}]}, "answers[0].surprise"),
    ],
    ids=str,
)
async def test_a_state_that_is_none_is_refused_by_name(
    checkpoint: Path, changes: dict[str, Any], param: str
) -> None:
    """Nothing runs, nothing breaks."""
    async with replica(checkpoint, script) as desk:
        answer = await desk.call("POST", "/v1/handoff/resume", {**STATE, "endpoint": "completions"}).answer()
        assert answer.json["choices"][0]["text"] == ANSWER_TEXT
        state = {**STATE, "endpoint": "completions", **changes}
        answer = await desk.call("POST", "/v1/handoff/resume", state).answer()
        assert answer.status in (400, 404)
        assert answer.error["param"] == param


ANSWER_TEXT = "Hé, 你好. Stop here"
