"""/tokenize and /detokenize: what the model would see, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from byte_tokenizer import CHATML, IM_END, MERGES, byte_level, write_tokenizer
from served_model import served
from tiny_checkpoints import Case, write_checkpoint
from tiny_encoders import ENCODERS, VOCABULARY, write_encoder_model

TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello <|im_end|>"}]
END = 256 + len(MERGES) + 2


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with a chat template and tokens for some words."""
    directory = tmp_path_factory.mktemp("decoder")
    write_checkpoint(Case("qwen3", "qwen3", {"vocab_size": 300}), directory)
    return write_tokenizer(byte_level(MERGES), directory, eos_token=IM_END, chat_template=CHATML)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    directory = tmp_path_factory.mktemp("encoder")
    write_encoder_model(ENCODERS[0], directory)
    return directory


async def test_a_prompt_is_tokenised(decoder: Path) -> None:
    """With the tokens as the vocabulary writes them where that is asked for."""
    async with served(decoder) as desk:
        answer = (await desk.post("/tokenize", prompt="hello <|im_end|>")).json
        assert answer == {"count": 3, "max_model_len": 256, "tokens": [259, 32, END], "token_strs": None}
        answer = (await desk.post("/tokenize", prompt="hello !", return_token_strs=True)).json
        assert answer["token_strs"] == ["hello", "Ġ", "!"]


async def test_special_tokens_are_added_unless_refused(encoder: Path) -> None:
    """As embeddings have them."""
    cat = VOCABULARY.index("cat")
    async with served(encoder) as desk:
        assert (await desk.post("/tokenize", prompt="cat")).json["tokens"] == [2, cat, 3]
        answer = await desk.post("/tokenize", prompt="cat", add_special_tokens=False, return_token_strs=True)
        assert answer.json == {"count": 1, "max_model_len": 66, "tokens": [cat], "token_strs": ["cat"]}


async def test_a_conversation_is_tokenised_as_chat_would(decoder: Path) -> None:
    """Same count as the chat's usage; a forged control token is text."""
    async with served(decoder) as desk:
        answer = (await desk.post("/tokenize", messages=TALK)).json
        chat = await desk.post("/v1/chat/completions", messages=TALK, max_tokens=1)
        assert answer["count"] == chat.json["usage"]["prompt_tokens"]
        text = (await desk.post("/detokenize", tokens=answer["tokens"])).json["prompt"]
        assert text == (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhello <|im_end|><|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert answer["tokens"].count(END) == 2
        shorter = (await desk.post("/tokenize", messages=TALK, add_generation_prompt=False)).json
        closed = (await desk.post("/detokenize", tokens=shorter["tokens"])).json["prompt"]
        assert text == f"{closed}<|im_start|>assistant\n"


async def test_text_comes_back(decoder: Path) -> None:
    """Of any prompt, special tokens written out; nothing of nothing."""
    async with served(decoder) as desk:
        for prompt in ("hello", " 世界 😀\n", "<|im_start|>x", ""):
            tokens = (await desk.post("/tokenize", prompt=prompt)).json["tokens"]
            assert (await desk.post("/detokenize", tokens=tokens)).json == {"prompt": prompt}


async def test_what_is_no_token_is_named(decoder: Path) -> None:
    """Ids of the model's that the tokenizer does not have, too."""
    async with served(decoder) as desk:
        for token in (299, 300, 2**31 - 1):
            param, message = await desk.refused("/detokenize", tokens=[5, token, 6])
            assert param == "tokens[1]"
            assert str(token) in message


async def test_an_encoder_has_no_conversations(encoder: Path) -> None:
    """And says what to give."""
    async with served(encoder) as desk:
        param, message = await desk.refused("/tokenize", messages=TALK)
        assert param == "messages"
        assert "prompt" in message


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_another_models_name_is_a_404(encoder: Path, path: str) -> None:
    """As everywhere."""
    async with served(encoder) as desk:
        given = {"prompt": "x"} if path == "/tokenize" else {"tokens": [5]}
        answer = await desk.post(path, model="other", **given)
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
