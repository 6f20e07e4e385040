"""/v1/rerank: by a cross-encoder's head, or by the cosine of embeddings; the most relevant first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from byte_tokenizer import byte_level, write_tokenizer
from penstock.replica.rerank_endpoints import RERANK_PATHS
from served_model import served
from tiny_checkpoints import Case, write_checkpoint
from tiny_encoders import ENCODERS, REAL, SCORERS, EncoderCase, word_piece, write_encoder_model

PATH = "/v1/rerank"
DOCUMENTS = ["the dog ran in the house", "price rose", {"text": "a quick brown fox"}, "", "cats sat"]
TEXTS = [one if isinstance(one, str) else one["text"] for one in DOCUMENTS]


@pytest.fixture(params=SCORERS, ids=str)
def scorer(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A tiny cross-encoder, and transformers' model of it."""
    case: EncoderCase = request.param
    return tmp_path, write_encoder_model(case, tmp_path)


@torch.inference_mode()
def oracle_score(oracle: Any, query: str, document: str) -> float:
    """The sigmoid of transformers' logit of one pair."""
    encoding = word_piece().encode(query, document)
    kinds = [encoding.type_ids] if oracle.config.type_vocab_size > 1 else [[0] * len(encoding.ids)]
    logits = oracle(
        torch.tensor([encoding.ids]),
        token_type_ids=torch.tensor(kinds),
        attention_mask=torch.ones(1, len(encoding.ids)),
    ).logits
    return float(logits.sigmoid()[0, 0])


async def test_a_cross_encoder_scores_as_transformers(scorer: tuple[Path, Any]) -> None:
    """All documents, sorted, with their texts and indices; usage counts every pair."""
    directory, oracle = scorer
    wanted = [oracle_score(oracle, "where is the dog", text) for text in TEXTS]
    async with served(directory) as desk:
        answer = await desk.post(PATH, query="where is the dog", documents=DOCUMENTS)
        assert answer.status == 200
        results = answer.json["results"]
        assert [one["index"] for one in results] == np.argsort(-np.array(wanted), kind="stable").tolist()
        for one in results:
            assert one["relevance_score"] == pytest.approx(wanted[one["index"]], abs=1e-5)
            assert one["document"] == {"text": TEXTS[one["index"]]}
        num_tokens = sum(len(word_piece().encode("where is the dog", text).ids) for text in TEXTS)
        assert answer.json["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        assert answer.json["id"].startswith("rerank-")
        assert answer.json["model"] == "served"


async def test_only_the_best_are_given_and_documents_left_out_as_asked(scorer: tuple[Path, Any]) -> None:
    """More than there are is all."""
    async with served(scorer[0]) as desk:
        asked = {"query": "the dog", "documents": DOCUMENTS}
        whole = (await desk.post(PATH, **asked)).json["results"]
        best = (await desk.post(PATH, top_n=2, return_documents=False, **asked)).json["results"]
        assert [set(one) for one in best] == [{"index", "relevance_score"}] * 2
        assert [one["index"] for one in best] == [one["index"] for one in whole[:2]]
        assert len((await desk.post(PATH, top_n=99, **asked)).json["results"]) == len(DOCUMENTS)


async def test_a_score_does_not_depend_on_the_other_documents(scorer: tuple[Path, Any]) -> None:
    """Many at once, in many batches."""
    async with served(scorer[0], max_batch_tokens=30, max_sequences=4) as desk:
        many = (await desk.post(PATH, query="the dog", documents=TEXTS * 20)).json["results"]
        for text in TEXTS:
            (alone,) = (await desk.post(PATH, query="the dog", documents=[text])).json["results"]
            scores = [one["relevance_score"] for one in many if one["document"]["text"] == text]
            assert len(scores) == 20
            np.testing.assert_allclose(scores, alone["relevance_score"], atol=1e-6)


async def test_long_documents_are_named_or_cut(scorer: tuple[Path, Any]) -> None:
    """Cut to what was asked for, or to what the model takes; a query is never cut."""
    async with served(scorer[0]) as desk:
        long = "dog " * 100
        param, message = await desk.refused(PATH, query="cat", documents=["a", long])
        assert param == "documents[1]"
        assert str(desk.model.max_model_len) in message
        asked = {"query": "cat", "documents": [long, "dog dog dog"]}
        cut = (await desk.post(PATH, max_tokens_per_doc=3, **asked)).json["results"]
        assert cut[0]["relevance_score"] == pytest.approx(cut[1]["relevance_score"], abs=1e-6)
        assert (await desk.post(PATH, max_tokens_per_doc=4096, **asked)).status == 200
        assert (await desk.refused(PATH, query=long, documents=["a"]))[0] == "query"
        huge = "x" * (desk.model.max_model_len * 512 + 1)
        assert (await desk.refused(PATH, query="cat", documents=["a", huge]))[0] == "documents[1]"
        assert (await desk.refused(PATH, query=huge, documents=["a"]))[0] == "query"
        assert (await desk.post(PATH, query="cat", documents=[huge], max_tokens_per_doc=9)).status == 200
        exact = "dog " * (desk.model.max_model_len - 4)
        assert (await desk.post(PATH, query="cat", documents=[exact])).status == 200


async def test_a_cross_encoder_has_no_embeddings(scorer: tuple[Path, Any]) -> None:
    """And says what it is for."""
    async with served(scorer[0]) as desk:
        param, message = await desk.refused("/v1/embeddings", input="x")
        assert param == "model"
        assert "/v1/rerank" in message


async def test_the_real_encoder_ranks_by_meaning() -> None:
    """By the cosine of its embeddings, under every path."""
    documents = [
        "The Eiffel Tower is in Paris.",
        "To reset your password, open the settings and choose 'Forgot password'.",
        "Bananas are rich in potassium.",
    ]
    async with served(REAL) as desk:
        query = "I cannot log in any more"
        vectors = np.array(await desk.vectors([query, *documents]))
        for path in RERANK_PATHS:
            results = (await desk.post(path, query=query, documents=documents)).json["results"]
            assert results[0]["index"] == 1
            for one in results:
                cosine = vectors[0] @ vectors[1 + one["index"]]
                assert one["relevance_score"] == pytest.approx(cosine, abs=1e-6)


async def test_an_encoder_cuts_documents_too(tmp_path: Path) -> None:
    """To so many tokens of the document, special ones not counted."""
    write_encoder_model(ENCODERS[0], tmp_path)
    async with served(tmp_path) as desk:
        asked = {"query": "cat", "documents": ["dog " * 100, "dog dog dog"]}
        assert (await desk.refused(PATH, **asked))[0] == "documents[0]"
        one, other = (await desk.post(PATH, max_tokens_per_doc=3, **asked)).json["results"]
        assert one["relevance_score"] == pytest.approx(other["relevance_score"], abs=1e-6)
        assert (await desk.refused(PATH, query="dog " * 100, documents=["a"]))[0] == "query"


async def test_a_decoder_ranks_by_its_embeddings(tmp_path: Path) -> None:
    """The query's own text comes first, with cosine 1."""
    write_checkpoint(Case("qwen3", "qwen3", {"vocab_size": 300}), tmp_path)
    write_tokenizer(byte_level(), tmp_path)
    async with served(tmp_path) as desk:
        answer = await desk.post(PATH, query="hello", documents=["other", "hello", "more"])
        best = answer.json["results"][0]
        assert best["index"] == 1
        assert best["relevance_score"] == pytest.approx(1, abs=1e-5)
        assert answer.json["usage"]["prompt_tokens"] == 5 + 5 + 5 + 4
        # A byte-level tokenizer finds no token in an empty text.
        assert (await desk.refused(PATH, query="hello", documents=["a", ""]))[0] == "documents[1]"


async def test_who_leaves_and_who_is_late(scorer: tuple[Path, Any]) -> None:
    """Frees the engine; gets a 504."""
    async with served(scorer[0], max_sequences=2) as desk:
        asked = {"query": "the dog", "documents": TEXTS * 400}
        call = desk.call(PATH, **asked)
        await asyncio.sleep(0)
        call.leave()
        await call.ended()
        assert call.sent == []
        late = await desk.call(PATH, [(b"x-request-timeout", b"0.001")], **asked).answer()
        assert (late.status, late.error["code"]) == (504, "deadline_exceeded")
