"""A prompt's KV from one replica into another: the reply tells the truth, and the next request hits."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from asgi_call import Call
from kv_replica import BLOCK, MESSAGES, TEXT, blocks_in, error_of, replica, write_model
from native_kernels import EITHER
from penstock.engine.kv_archive import MAGIC


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer that fits."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("kernels", EITHER)
async def test_what_the_reply_says_is_what_the_next_request_finds(directory: Path, kernels: str) -> None:
    """And its answer is, token by token, that of the replica where the prompt was computed."""
    async with replica(directory, kernels=kernels) as here, replica(directory, kernels=kernels) as there:
        for desk in (here, there):
            assert desk.model.kv is not None
            desk.model.kv.batch_blocks = 5
        said, found = await here.ask()
        assert found == 0
        archive = await here.export(prompt=TEXT)
        reply = await there.bring(archive)
        num_blocks = len(TEXT) // BLOCK
        assert reply == {
            "tokens": num_blocks * BLOCK,
            "reusable_tokens": num_blocks * BLOCK,
            "imported_blocks": num_blocks,
            "known_blocks": 0,
            "dropped_blocks": 0,
            "reason": None,
        }
        assert await there.ask() == (said, reply["reusable_tokens"])
        assert there.core.stats().prefix_hit_tokens == reply["reusable_tokens"]
        again = await there.bring(archive)
        assert (again["known_blocks"], again["reusable_tokens"]) == (num_blocks, reply["reusable_tokens"])
        stats = await there.stats()
        assert (stats["imported_blocks"], stats["block_size"]) == (num_blocks, BLOCK)
        assert (await here.stats())["exported_blocks"] == num_blocks
        assert stats["fingerprint"] == (await here.stats())["fingerprint"]
        text = (await Call(there.application, "GET", "/metrics", (), ()).answer()).body.decode()
        assert f'penstock_engine_kv_blocks_moved_total{{way="imported"}} {num_blocks}.0' in text


async def test_a_prompt_is_named_by_text_by_ids_or_by_messages(directory: Path) -> None:
    """All three as a request for its answer would name it; what is not cached makes an empty archive."""
    async with replica(directory) as desk, replica(directory) as other:
        await desk.ask()
        ids = desk.model.tokenizer.encode(TEXT, add_special_tokens=True)
        assert await desk.export(prompt=ids) == await desk.export(prompt=TEXT)
        assert blocks_in(await desk.export(prompt="something else", messages=None), desk) == 0
        assert blocks_in(await desk.export(messages=MESSAGES), desk) == 0
        body = {"model": "m", "messages": MESSAGES, "max_tokens": 3, "temperature": 0}
        pieces = [json.dumps(body).encode()]
        await Call(desk.application, "POST", "/v1/chat/completions", pieces, ()).answer()
        reply = await other.bring(await desk.export(messages=MESSAGES))
        answer = (await Call(other.application, "POST", "/v1/chat/completions", pieces, ()).answer()).json
        assert 0 < answer["usage"]["prompt_tokens_details"]["cached_tokens"] == reply["reusable_tokens"]
        assert (await other.bring(await desk.export(prompt="x")))["tokens"] == 0


async def test_a_prompt_of_whole_blocks_finds_what_is_told(directory: Path) -> None:
    """Its last block is not exported, since a request with this prompt computes its last token."""
    async with replica(directory) as here, replica(directory) as there:
        prompt = TEXT[: 4 * BLOCK]
        await here.ask(prompt + "more")
        reply = await there.bring(await here.export(prompt=prompt))
        assert reply["reusable_tokens"] == 3 * BLOCK == (await there.ask(prompt))[1]


async def test_salts_stay_apart(directory: Path) -> None:
    """What was computed under one is exported and found under that one only."""
    async with replica(directory) as here, replica(directory) as there:
        await here.ask(cache_salt="tenant")
        assert blocks_in(await here.export(prompt=TEXT), here) == 0
        reply = await there.bring(await here.export(prompt=TEXT, cache_salt="tenant"))
        assert reply["reusable_tokens"] == 192
        assert [(await there.ask(**salt))[1] for salt in ({}, {"cache_salt": "tenant"})] == [0, 192]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:5000], "cut short"),
        (lambda data: data[:9000] + b"?" + data[9001:], "is damaged"),
        (lambda data: data + b"?", "followed by"),
    ],
)
async def test_a_damaged_archive_is_used_as_far_as_it_is_right(
    directory: Path, change: Any, reason: str
) -> None:
    """The reply says how far that is, and the next request finds just that."""
    async with replica(directory) as here, replica(directory) as there:
        said, _ = await here.ask()
        reply = await there.bring(change(await here.export(prompt=TEXT)))
        assert reason in reply["reason"]
        assert reply["imported_blocks"] * BLOCK == reply["reusable_tokens"]
        assert reply["imported_blocks"] + reply["dropped_blocks"] == len(TEXT) // BLOCK
        assert await there.ask() == (said, reply["reusable_tokens"])


async def test_an_archive_of_another_engine_is_a_miss(directory: Path) -> None:
    """Told, not an error."""
    async with replica(directory) as here, replica(directory, block_size=32) as there:
        await here.ask()
        reply = await there.bring(await here.export(prompt=TEXT))
        assert reply["reason"] == "the archive is of another engine, which differs in: block size"
        assert {value for key, value in reply.items() if key != "reason"} == {0}
        assert (await there.ask())[1] == 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, "invalid_value", "model")),
        ({"model": "m"}, (400, "invalid_value", "prompt")),
        ({"model": "m", "prompt": "a", "messages": MESSAGES}, (400, "invalid_value", "prompt")),
        ({"model": "other", "prompt": "a"}, (404, "model_not_found", "model")),
        ({"model": "m", "prompt": []}, (400, "invalid_value", "prompt")),
        ({"model": "m", "prompt": [-1]}, (400, "invalid_value", "prompt[0]")),
        ({"model": "m", "prompt": [1.5]}, (400, "invalid_value", "prompt[0]")),
        ({"model": "m", "prompt": 5}, (400, "invalid_value", "prompt")),
        ({"model": "m", "prompt": [1] * 513}, (400, "context_length_exceeded", "prompt")),
        ({"model": "m", "prompt": "a" * 20_000}, (400, "context_length_exceeded", "prompt")),
        ({"model": "m", "messages": []}, (400, "invalid_value", "messages")),
        ({"model": "m", "messages": 5}, (400, "invalid_value", "messages")),
        ({"model": "m", "prompt": "a", "cache_salt": ""}, (400, "invalid_value", "cache_salt")),
        ({"model": "m", "prompt": "a", "cache_salt": "\0a"}, (400, "invalid_value", "cache_salt")),
        ({"model": "m", "prompt": "a", "salt": "b"}, (400, "unknown_parameter", "salt")),
    ],
)
async def test_a_bad_export_request_is_refused_by_name(
    directory: Path, body: object, expected: tuple[int, str, str | None]
) -> None:
    """Nothing is accepted and ignored."""
    async with replica(directory) as desk:
        assert error_of(await desk.post("export", body).answer()) == expected


@pytest.mark.parametrize("body", [b"", b"{}", b"hello" * 10_000, MAGIC[:5] + b"?" * 100])
async def test_what_is_no_archive_is_a_400(directory: Path, body: bytes) -> None:
    """With what to send instead."""
    async with replica(directory) as desk:
        answer = await desk.post("import", body).answer()
        assert error_of(answer) == (400, "invalid_value", None)
        assert "/v1/kv/export" in answer.error["message"]


async def test_an_archive_larger_than_the_pool_is_a_413(directory: Path) -> None:
    """It is not read to its end."""
    async with replica(directory, kv_cache_mb=1) as desk:
        assert desk.model.kv is not None
        endless = [b"?" * (1 << 20)] * 8
        call = Call(desk.application, "POST", "/v1/kv/import", endless, ())
        assert error_of(await call.answer()) == (413, "body_too_large", None)


async def test_switched_off_there_is_no_such_path(directory: Path, tmp_path: Path) -> None:
    """With a snapshot alone there are only the figures."""
    async with replica(directory, kv_transfer=False, kv_snapshot=str(tmp_path / "kv")) as desk:
        assert (await desk.stats())["restored_blocks"] == 0
        for path in ("export", "import"):
            assert (await desk.post(path, {}).answer()).status == 404
    async with replica(directory, kv_transfer=False) as desk:
        assert desk.model.kv is None
        assert (await Call(desk.application, "GET", "/v1/kv/stats", (), ()).answer()).status == 404


async def test_two_imports_at_once_beside_requests(directory: Path) -> None:
    """Of overlapping prompts, while others are answered: all answers are right, and all of it is found."""
    other_text = TEXT[: 5 * BLOCK] + "!" * 60
    async with replica(directory) as here, replica(directory, max_batch_tokens=32) as there:
        said = [(await here.ask(text))[0] for text in (TEXT, other_text, "z" * 90)]
        archives = [await here.export(prompt=text) for text in (TEXT, other_text)]
        asking = [asyncio.ensure_future(there.ask("z" * 90)) for _ in range(3)]
        replies = await asyncio.gather(*(there.bring(archive) for archive in archives * 2))
        assert {text for text, _ in await asyncio.gather(*asking)} == {said[2]}
        assert [reply["dropped_blocks"] for reply in replies] == [0] * 4
        assert sum(reply["imported_blocks"] for reply in replies) == 12 + (len(other_text) - 1) // BLOCK - 5
        for text, expected, reply in zip((TEXT, other_text), said, replies, strict=False):
            assert await there.ask(text) == (expected, reply["reusable_tokens"])


async def test_in_a_full_pool_an_import_takes_the_room_of_what_is_old(directory: Path) -> None:
    """A share of it at most, none of what is in use, and no running answer is preempted."""
    async with replica(directory) as here, replica(directory, max_sequences=1, max_model_len=512) as there:
        said, _ = await here.ask()
        archive = await here.export(prompt=TEXT)
        num_blocks = there.core.stats().num_blocks
        for letter in "xyz":
            await there.ask(letter * 400)
        assert there.core.stats().num_free_blocks < 3
        running = asyncio.ensure_future(there.ask("x" * 410, max_tokens=60))
        reply = await there.bring(archive)
        await running
        assert reply["imported_blocks"] + reply["dropped_blocks"] == len(TEXT) // BLOCK
        assert reply["imported_blocks"] <= num_blocks
        assert there.core.stats().num_preemptions == 0
        assert (await there.ask())[0] == said
