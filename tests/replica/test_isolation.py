"""A request's misfortune is its own: whatever fails in or after the engine, its neighbours do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from asgi_call import Answer, Call
from loop_turns import until
from penstock.text.tokenizer import Tokenizer
from scripted_replica import END, FAIL, replica

GUARD_S = 30  # only a hanging replica gets here
# By a word of the prompt: what the model writes, and the error's code, if it is one.
STORIES: dict[str, tuple[Sequence[int], str | None]] = {
    "first": ([*b"Hello, world", END], None),
    "step": ([*b"Hello", FAIL], "engine_error"),
    "detokenizer": ([*b"Hello#", END], "internal_error"),
    "shape": ([*b"Hello$", END], "internal_error"),
    "last": ([*b"Good bye, world", END], None),
}


class DefectiveTokenizer(Tokenizer):
    """Raises for one letter, and for another gives what no encoder of answers takes."""

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        if ord("#") in ids:
            raise ZeroDivisionError
        return super().decode(ids) + ("\ud800" if ord("$") in ids else "")


async def ended(call: Call) -> Answer:
    """The answer; a defect of ours in mid-stream is raised to the server, which closes the connection."""
    try:
        await call.ended()
    except (ZeroDivisionError, UnicodeEncodeError):
        assert call.seen().status == 200
    return call.seen()


@pytest.mark.parametrize("stream", [True, False])
async def test_what_fails_in_one_request_fails_in_that_one_only(checkpoint: Path, stream: bool) -> None:
    """All of them in the same steps: a step that raises, a detokenizer, an encoder; the others are whole."""

    def script(prompt: str) -> Sequence[int]:
        return next(tokens for word, (tokens, _) in STORIES.items() if word in prompt)

    async with replica(checkpoint, script, kind=DefectiveTokenizer) as desk, asyncio.timeout(GUARD_S):
        desk.forward.hold()
        calls = {word: desk.complete(word, stream=stream) for word in STORIES}
        await until(lambda: desk.model.service.num_requests == len(STORIES))
        desk.forward.let()
        answers = dict(zip(calls, await asyncio.gather(*map(ended, calls.values())), strict=True))
        for word, (tokens, code) in STORIES.items():
            answer = answers[word]
            if code is not None:
                assert f'"{code}"'.encode() in answer.body
                assert (answer.status, b"[DONE]" in answer.body) == (200 if stream else 500, False)
            elif stream:
                assert answer.events[-1] == b"[DONE]"
                assert (
                    len(answer.events) == len(tokens) + 1
                )  # a piece for each but the end token, finish, done
            else:
                assert answer.json["choices"][0]["text"].encode() == bytes(tokens[:-1])
        assert desk.model.service.num_requests == 0
        assert desk.model.service.refusal is None
