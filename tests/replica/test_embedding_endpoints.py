"""/v1/embeddings over encoders and decoders: transformers' vectors in every form that can be asked for."""

from __future__ import annotations

import asyncio
import base64
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertModel

from asgi_call import Call
from byte_tokenizer import CHATML, IM_END, byte_level, write_tokenizer
from penstock.engine.pooling import Pooling, pool
from served_model import MODEL, served
from tiny_checkpoints import Case, write_checkpoint
from tiny_encoders import ENCODERS, REAL, write_encoder_model

PATH = "/v1/embeddings"
TEXTS = ["the cat sat on the mat .", "a dog ran", "prices rose", "x", "the quick brown fox " * 6]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny BERT of 66 positions with a tokenizer, and transformers' model of it."""
    directory = tmp_path_factory.mktemp("encoder")
    return directory, write_encoder_model(ENCODERS[0], directory)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny Qwen3 of 256 positions with a tokenizer, and transformers' model of it."""
    directory = tmp_path_factory.mktemp("decoder")
    oracle = write_checkpoint(Case("qwen3", "qwen3", {"vocab_size": 300}), directory)
    write_tokenizer(byte_level(), directory, eos_token=IM_END, chat_template=CHATML)
    return directory, oracle


@torch.inference_mode()
def expected(oracle: Any, ids: Sequence[int], pooling: Pooling, *, normalise: bool = True) -> np.ndarray:
    """transformers' vector of one text."""
    body = getattr(oracle, "model", oracle)
    vector = pool(body(torch.tensor([ids])).last_hidden_state[0], pooling).numpy()
    return vector / np.linalg.norm(vector) if normalise else vector


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("pooling", [None, *Pooling])
@pytest.mark.parametrize("normalise", [True, False])
async def test_vectors_are_transformers(
    kind: str, pooling: Pooling | None, normalise: bool, request: pytest.FixtureRequest
) -> None:
    """With every pooling; encoders take the mean where nothing is said, decoders the last token."""
    directory, oracle = request.getfixturevalue(kind)
    chosen = pooling or (Pooling.MEAN if kind == "encoder" else Pooling.LAST)
    async with served(directory, max_batch_tokens=16, max_sequences=4) as desk:
        fields = {"normalize": normalise} | ({} if pooling is None else {"pooling": pooling.value})
        for _ in range(2):  # a second time from whatever is cached
            vectors = await desk.vectors(TEXTS, **fields)
            for text, vector in zip(TEXTS, vectors, strict=True):
                ids = desk.model.tokenizer.encode(text, add_special_tokens=True)
                wanted = expected(oracle, ids, chosen, normalise=normalise)
                np.testing.assert_allclose(vector, wanted, atol=1e-5)


async def test_the_real_encoder_is_transformers() -> None:
    """Its folder says how: mean, normalised, 256 tokens at most."""
    oracle = BertModel.from_pretrained(REAL, attn_implementation="eager").eval()
    async with served(REAL) as desk:
        assert desk.model.max_model_len == 256
        texts = ["How do I reset my password?", "Passwort zurücksetzen", "I lost my login. " * 30]
        for text, vector in zip(texts, await desk.vectors(texts), strict=True):
            ids = desk.model.tokenizer.encode(text, add_special_tokens=True)
            np.testing.assert_allclose(vector, expected(oracle, ids, Pooling.MEAN), atol=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
async def test_a_vector_does_not_depend_on_its_company(kind: str, request: pytest.FixtureRequest) -> None:
    """Nor on its place; each input as text or as token ids."""
    async with served(request.getfixturevalue(kind)[0]) as desk:
        alone = [(await desk.vectors(text))[0] for text in TEXTS]
        ids = [desk.model.tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
        for given in (TEXTS, ids):
            np.testing.assert_allclose(await desk.vectors(given), alone, atol=1e-6)
            np.testing.assert_allclose(await desk.vectors(given[::-1]), alone[::-1], atol=1e-6)
        np.testing.assert_allclose(await desk.vectors(ids[0]), alone[:1], atol=1e-6)


async def test_base64_is_the_same_numbers(encoder: tuple[Path, Any]) -> None:
    """Little-endian float32."""
    async with served(encoder[0]) as desk:
        floats = await desk.vectors(TEXTS)
        packed = await desk.vectors(TEXTS, encoding_format="base64")
        read = [np.frombuffer(base64.b64decode(one), dtype="<f4") for one in packed]
        assert [one.tolist() for one in read] == floats


async def test_fewer_dimensions_are_cut_and_brought_to_length_one(encoder: tuple[Path, Any]) -> None:
    """Without normalising they are cut alone; more than there are is refused."""
    async with served(encoder[0]) as desk:
        whole = np.array(await desk.vectors(TEXTS, normalize=False))
        cut = np.array(await desk.vectors(TEXTS, dimensions=7))
        np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(
            cut, whole[:, :7] / np.linalg.norm(whole[:, :7], axis=1)[:, None], atol=1e-6
        )
        assert (np.array(await desk.vectors(TEXTS, dimensions=7, normalize=False)) == whole[:, :7]).all()
        assert (await desk.refused(PATH, input="x", dimensions=49))[0] == "dimensions"
        assert len((await desk.vectors("x", dimensions=48))[0]) == 48


async def test_usage_counts_every_token(encoder: tuple[Path, Any]) -> None:
    """Special ones included."""
    async with served(encoder[0]) as desk:
        usage = (await desk.post(PATH, input=["cat", "the dog"])).json["usage"]
        assert usage == {"prompt_tokens": 7, "total_tokens": 7}


@pytest.mark.parametrize(("kind", "longest"), [("encoder", 66), ("decoder", 256)])
async def test_a_text_that_is_too_long_is_named(
    kind: str, longest: int, request: pytest.FixtureRequest
) -> None:
    """By its index, with both lengths; one token less is taken."""
    async with served(request.getfixturevalue(kind)[0]) as desk:
        for text in ("a " * 400, [5] * (longest + 1)):
            param, message = await desk.refused(PATH, input=[text[:1], text])
            assert param == "input[1]"
            assert str(longest) in message
        if kind == "decoder":  # seen before it is tokenised
            assert (await desk.refused(PATH, input=["a", "x" * 100_000]))[0] == "input[1]"
        else:  # a word that it does not know is one token; there is a bound all the same
            assert len(await desk.vectors(["a", "x" * longest * 512])) == 2
            assert (await desk.refused(PATH, input=["a", "x" * (longest * 512 + 1)]))[0] == "input[1]"
        assert len(await desk.vectors("a " * 1_000_000, truncate_prompt_tokens=-1)) == 1
        assert (await desk.refused(PATH, input="a " * 400))[0] == "input"
        assert len(await desk.vectors([[5] * longest])) == 1


@pytest.mark.parametrize(("kind", "longest"), [("encoder", 66), ("decoder", 256)])
async def test_a_text_is_cut_where_that_was_asked_for(
    kind: str, longest: int, request: pytest.FixtureRequest
) -> None:
    """At the end, before the special tokens behind it; a short one stays as it is."""
    async with served(request.getfixturevalue(kind)[0]) as desk:
        tokenizer = desk.model.tokenizer
        for cut in (-1, 20, 5000):
            keep = min(cut, longest) if cut > 0 else longest
            ids = tokenizer.encode("a " * 400, add_special_tokens=False)
            added = tokenizer.num_added()
            kept = ids[: keep - added]
            wanted = [2, *kept, 3] if added else kept
            assert len(wanted) == keep
            asked = await desk.vectors(["a " * 400, "dog"], truncate_prompt_tokens=cut)
            (as_ids,) = await desk.vectors([wanted + [7] * (added == 0)], truncate_prompt_tokens=keep)
            np.testing.assert_allclose(asked[0], as_ids, atol=1e-6)
            np.testing.assert_allclose(asked[1], (await desk.vectors("dog"))[0], atol=1e-6)
        if added:
            assert (await desk.refused(PATH, input="x", truncate_prompt_tokens=added))[0] == (
                "truncate_prompt_tokens"
            )


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
async def test_ids_that_are_no_tokens_are_named(kind: str, request: pytest.FixtureRequest) -> None:
    """By their place."""
    async with served(request.getfixturevalue(kind)[0]) as desk:
        assert (await desk.refused(PATH, input=[[5], [6, 7, 5000, 8]]))[0] == "input[1][2]"
        assert (await desk.refused(PATH, input=[5, 2**31 - 1]))[0] == "input[1]"


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
async def test_two_thousand_texts_are_one_request(kind: str, request: pytest.FixtureRequest) -> None:
    """Though the queue holds a few; a small request beside it is answered before it ends."""
    async with served(request.getfixturevalue(kind)[0], max_sequences=4, max_waiting=2) as desk:
        texts = [f"{number} cat" for number in range(2048)]
        large = desk.call(PATH, input=texts)
        small = await desk.post(PATH, input="a dog")
        assert small.status == 200
        assert large.sent == []
        answer = await large.answer()
        assert answer.status == 200
        assert len(answer.json["data"]) == 2048
        (alone,) = await desk.vectors(texts[2047])
        np.testing.assert_allclose(answer.json["data"][2047]["embedding"], alone, atol=1e-6)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
async def test_who_leaves_frees_the_engine(kind: str, request: pytest.FixtureRequest) -> None:
    """What is left of the request is not computed."""
    async with served(request.getfixturevalue(kind)[0], max_sequences=4) as desk:
        call = desk.call(PATH, input=["the cat"] * 2048)
        await asyncio.sleep(0)
        call.leave()
        await call.ended()
        assert call.sent == []
        assert len(await desk.vectors("x")) == 1
        assert desk.model.service.stats().prompt_tokens < 2048 * 4


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
async def test_a_request_past_its_time_is_a_504(kind: str, request: pytest.FixtureRequest) -> None:
    """However many texts it has."""
    async with served(request.getfixturevalue(kind)[0]) as desk:
        call = desk.call(PATH, [(b"x-request-timeout", b"0.001")], input=["the cat"] * 2048)
        answer = await call.answer()
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")


async def test_generation_goes_on_beside_embeddings(decoder: tuple[Path, Any]) -> None:
    """The same text as without them."""
    async with served(decoder[0], max_sequences=4) as desk:
        asked = {"prompt": "hello", "temperature": 0, "max_tokens": 20}
        alone = (await desk.post("/v1/completions", **asked)).json["choices"][0]["text"]
        large = desk.call(PATH, input=TEXTS * 50, pooling="mean")
        assert (await desk.post("/v1/completions", **asked)).json["choices"][0]["text"] == alone
        assert (await large.answer()).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b"[" * 100_000, b'{"model":"served"}'])
async def test_what_is_no_request_is_a_400(encoder: tuple[Path, Any], body: bytes) -> None:
    """Never a 500."""
    async with served(encoder[0]) as desk:
        answer = await Call(desk.application, "POST", PATH, [body], ()).answer()
        assert answer.status == 400
        assert answer.error["message"]


async def test_another_models_name_is_a_404(encoder: tuple[Path, Any]) -> None:
    """With the one that is here."""
    async with served(encoder[0]) as desk:
        answer = await desk.post(PATH, model="other", input="x")
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert MODEL in answer.error["message"]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
async def test_a_storm_of_clients_leaves_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    """Some leave, are late, send what is refused or find the queue full; the others are right."""
    async with served(request.getfixturevalue(kind)[0], max_sequences=4, max_waiting=20) as desk:
        draw = random.Random(5)
        alone = {text: (await desk.vectors(text))[0] for text in TEXTS}
        calls: list[tuple[Call, list[str], str]] = []
        for _ in range(60):
            texts = [draw.choice(TEXTS) for _ in range(draw.choice((1, 1, 3, 40)))]
            fate = draw.choice(("stays", "stays", "leaves", "is late", "errs"))
            headers = [(b"x-request-timeout", b"0.0001")] if fate == "is late" else []
            given = [*texts, ""] if fate == "errs" else texts
            calls.append((desk.call(PATH, headers, input=given), texts, fate))
            for _ in range(draw.randrange(30)):
                await asyncio.sleep(0)
            if fate == "leaves":
                calls[-1][0].leave()
        statuses = Counter()
        for call, texts, fate in calls:
            await call.ended()
            if not call.sent:
                assert fate == "leaves"
                continue
            answer = call.seen()
            statuses[answer.status] += 1
            if answer.status == 200:
                vectors = [one["embedding"] for one in answer.json["data"]]
                np.testing.assert_allclose(vectors, [alone[text] for text in texts], atol=1e-6)
            else:
                assert answer.status in {"errs": (400,), "is late": (504, 429)}.get(fate, (429,))
        assert statuses[200] > 5
        assert statuses[400] > 5
        assert len(await desk.vectors("x")) == 1
