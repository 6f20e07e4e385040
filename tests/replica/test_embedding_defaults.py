"""How a checkpoint wants its embeddings made: from sentence-transformers' files, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import write_json
from penstock.base.errors import CheckpointError
from penstock.engine.pooling import Pooling
from penstock.replica.embedding_defaults import EmbeddingDefaults, read_longest_text
from tiny_encoders import REAL


def module(kind: str, path: str) -> dict[str, Any]:
    """An entry of modules.json."""
    return {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}


def write(directory: Path, kinds: list[tuple[str, str]] | None, pooling: dict[str, Any] | None) -> Path:
    """A folder with these modules and this pooling config in 1_Pooling."""
    if kinds is not None:
        write_json(directory / "modules.json", [module(*one) for one in kinds])
    if pooling is not None:
        (directory / "1_Pooling").mkdir()
        write_json(directory / "1_Pooling" / "config.json", pooling)
    return directory


def read(directory: Path) -> EmbeddingDefaults:
    """Of a model of 48 whose kind takes the last token."""
    return EmbeddingDefaults.of_checkpoint(directory, 48, Pooling.LAST)


THREE = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]


def test_the_real_encoder() -> None:
    """Mean, normalised, made for 256 tokens."""
    assert read_longest_text(REAL) == 256
    found = EmbeddingDefaults.of_checkpoint(REAL, 384, Pooling.CLS)
    assert found == EmbeddingDefaults(384, Pooling.MEAN, is_normalised=True)


def test_a_folder_that_says_nothing(tmp_path: Path) -> None:
    """The kind's own pooling, normalised."""
    assert read(tmp_path) == EmbeddingDefaults(48, Pooling.LAST, is_normalised=True)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.CLS),
        ({"pooling_mode_mean_tokens": True}, Pooling.MEAN),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, Pooling.LAST),
        ({"pooling_mode": "cls", "embedding_dimension": 48}, Pooling.CLS),
        ({"pooling_mode": "lasttoken"}, Pooling.LAST),
    ],
)
def test_pooling_is_read_in_old_words_and_new(
    tmp_path: Path, config: dict[str, Any], pooling: Pooling
) -> None:
    """With modules.json and without it."""
    assert read(write(tmp_path, None, config)).pooling is pooling
    write_json(tmp_path / "modules.json", [module(*one) for one in THREE])
    assert read(tmp_path).pooling is pooling


def test_without_a_normalize_module_vectors_keep_their_length(tmp_path: Path) -> None:
    """As the checkpoint wants it."""
    assert not read(write(tmp_path, THREE[:2], {"pooling_mode": "mean"})).is_normalised


@pytest.mark.parametrize(
    ("kinds", "config", "word"),
    [
        ([*THREE, ("Dense", "3_Dense")], {"pooling_mode": "mean"}, "Dense"),
        (THREE, {"pooling_mode_max_tokens": True}, "max"),
        (THREE, {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "mean and max"),
        (THREE, {"pooling_mode": "weightedmean"}, "weightedmean"),
        (THREE, {"pooling_mode": ["mean", "cls"]}, "nothing"),
        (THREE, {"word_embedding_dimension": 48}, "nothing"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    tmp_path: Path, kinds: list[tuple[str, str]], config: dict[str, Any], word: str
) -> None:
    """Another pipeline would give other vectors."""
    with pytest.raises(CheckpointError, match=word):
        read(write(tmp_path, kinds, config))


@pytest.mark.parametrize("content", [b"{", b"{}", b"[5]", b"\xff", b"null"])
def test_broken_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """With their path."""
    (tmp_path / "modules.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("longest", "found"), [(128, 128), (None, None), (0, None), ("5", None), (True, None)]
)
def test_the_longest_text_is_read(tmp_path: Path, longest: Any, found: int | None) -> None:
    """Null, as some checkpoints have it, says nothing."""
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": longest})
    assert read_longest_text(tmp_path) == found
