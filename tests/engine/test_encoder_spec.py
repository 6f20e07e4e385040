"""Encoders read from config.json: what is honoured, what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import CheckpointError
from penstock.engine.encoder_spec import EncoderSpec
from penstock.engine.weights import read_config
from tiny_encoders import ENCODERS, REAL, SCORERS, EncoderCase, read_encoder, write_encoder

BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
}


@pytest.mark.parametrize("case", [*ENCODERS, *SCORERS], ids=str)
def test_parameters_are_counted_as_they_are(case: EncoderCase, tmp_path: Path) -> None:
    """The dtype is chosen by their number."""
    write_encoder(case, tmp_path)
    encoder = read_encoder(tmp_path)
    assert encoder.spec.num_parameters == sum(one.numel() for one in encoder.parameters())


def test_the_real_encoder_is_read() -> None:
    """22.6 million parameters without the pooler, which nothing here uses."""
    spec = EncoderSpec.from_config(read_config(REAL))
    assert (spec.family, spec.max_positions, spec.scores) == ("bert", 512, False)
    assert spec.num_parameters == 22_565_376


@pytest.mark.parametrize(("pad", "positions"), [(1, 38), (0, 39), (None, 38)])
def test_roberta_counts_its_positions_from_the_padding_on(pad: int | None, positions: int) -> None:
    """Of 514 rows 512 can be used."""
    config = BERT | {"architectures": ["XLMRobertaModel"], "pad_token_id": pad}
    assert EncoderSpec.from_config(config).max_positions == positions


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["DebertaModel"]}, "DebertaModel"),
        ({"architectures": None}, "BertModel"),
        ({"architectures": []}, "BertModel"),
        ({"architectures": "BertModel"}, "supported"),
        ({"hidden_act": "silu"}, "silu"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": 30}, "multiple"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"vocab_size": "100"}, "vocab_size"),
        ({"layer_norm_eps": "small"}, "wrong type"),
        ({"architectures": ["RobertaModel"], "pad_token_id": 39}, "positions"),
        ({"architectures": ["RobertaModel"], "pad_token_id": -5}, "positions"),
        ({"architectures": ["BertForSequenceClassification"]}, "2 labels"),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            "3",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes: dict[str, Any], word: str) -> None:
    """Before a weight is read."""
    with pytest.raises(CheckpointError, match=word):
        EncoderSpec.from_config(BERT | changes)


@pytest.mark.parametrize("key", [key for key in BERT if key != "architectures"])
def test_a_missing_key_is_named(key: str) -> None:
    """None has a default that could be trusted."""
    with pytest.raises(CheckpointError, match=key):
        EncoderSpec.from_config({name: value for name, value in BERT.items() if name != key})


def test_encoders_are_told_from_decoders() -> None:
    """By the architecture alone."""
    assert EncoderSpec.is_for(BERT)
    assert EncoderSpec.is_for(BERT | {"architectures": ["XLMRobertaForSequenceClassification"]})
    assert not EncoderSpec.is_for(BERT | {"architectures": ["Qwen3ForCausalLM"]})
    assert not EncoderSpec.is_for({})
