"""One live `penstock up` for all tests that do not stop it, serving a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from running_service import RunningService
from tiny_checkpoints import Case, write_checkpoint

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} in <tool_call></tool_call>\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CONTEXT = 8192
SPECIAL = ["<s>", "</s>"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer of letters, so that every token is visible text."""
    folder = tmp_path_factory.mktemp("models") / "little"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    shape = {"vocab_size": len(vocabulary), "max_position_embeddings": CONTEXT}
    write_checkpoint(Case("little", "llama", shape), folder)
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def service(checkpoint: Path) -> Iterator[RunningService]:
    """The process; tests leave it as they found it."""
    with RunningService("up", "--model", str(checkpoint), "--port", "0") as running:
        running.wait_announced()
        yield running


@pytest.fixture(scope="session")
def address(service: RunningService) -> str:
    """http://host:port"""
    return service.wait_announced()


@pytest.fixture(scope="session")
def port(address: str) -> int:
    """The gateway's port."""
    port = urlsplit(address).port
    assert port is not None
    return port
