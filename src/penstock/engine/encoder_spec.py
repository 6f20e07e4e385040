"""What an encoder looks like, read once from a checkpoint's config.json.

One :class:`EncoderSpec` configures the one encoder for BERT, RoBERTa and XLM-RoBERTa, with or without a
classification head of one label, which makes it a cross-encoder. What cannot be honoured is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.base.errors import CheckpointError

FAMILIES = {"Bert": "bert", "Roberta": "roberta", "XLMRoberta": "roberta", "Camembert": "roberta"}
SCORING = "ForSequenceClassification"
# The part of an architecture's name behind its family; a language model's head is left unread.
SUPPORTED = {
    f"{prefix}{suffix}": (family, suffix == SCORING)
    for prefix, family in FAMILIES.items()
    for suffix in ("Model", "ForMaskedLM", SCORING)
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# transformers' number of labels where config.json names none.
DEFAULT_LABELS = 2


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Shape and switches of an encoder. Lengths are in tokens, sizes in elements."""

    family: str
    """`bert` or `roberta`: they differ in positions and in the head."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    position_rows: int
    """Of the table of positions, those that RoBERTa leaves unused included."""
    type_rows: int
    """Kinds of segments that the model tells apart."""
    layer_norm_eps: float
    activation: str
    pad_token_id: int = 0
    scores: bool = False
    """True for a cross-encoder: its head gives a pair of texts one score."""
    checkpoint_dtype: str = "float32"

    @property
    def max_positions(self) -> int:
        """Longest text in tokens. RoBERTa counts positions from behind the padding's id on."""
        return self.position_rows - (self.pad_token_id + 1 if self.family == "roberta" else 0)

    @property
    def num_parameters(self) -> int:
        """Number of weights, biases and norms included."""
        size, mlp = self.hidden_size, self.intermediate_size
        layer = 4 * size * (size + 1) + 2 * size * mlp + mlp + size + 4 * size
        head = size * (size + 1) + size + 1 if self.scores else 0
        tables = self.vocab_size + self.position_rows + self.type_rows + 2
        return tables * size + self.num_layers * layer + head

    @staticmethod
    def is_for(config: Mapping[str, Any]) -> bool:
        """True if config.json is that of an encoder that is supported here."""
        return _architecture(config) in SUPPORTED

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> EncoderSpec:
        """Reads a Hugging Face config.json.

        Raises:
            CheckpointError: unknown architecture, missing key, or a feature the encoder does not have.
        """
        architecture = _architecture(config)
        if architecture not in SUPPORTED:
            raise CheckpointError(
                f"architecture {architecture!r} is no encoder that is supported; supported: "
                f"{', '.join(sorted(SUPPORTED))}",
                param="architectures",
            )
        _refuse_unbuilt(config)
        try:
            return _read(config, *SUPPORTED[architecture])
        except KeyError as error:
            raise CheckpointError(f"config.json lacks {error.args[0]!r}", param=str(error.args[0])) from error
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config.json has a value of the wrong type or range: {error}") from error


def _architecture(config: Mapping[str, Any]) -> str:
    given = config.get("architectures")
    return str(given[0]) if isinstance(given, list) and given else ""


def _refuse_unbuilt(config: Mapping[str, Any]) -> None:
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(
            f"position_embedding_type {config['position_embedding_type']!r} is not supported",
            param="position_embedding_type",
        )
    if config.get("is_decoder", False):
        raise CheckpointError("is_decoder is not supported: this would be no encoder", param="is_decoder")
    if config.get("quantization_config"):
        raise CheckpointError(
            "the checkpoint is stored quantised, which is not supported: give the original weights",
            param="quantization_config",
        )


_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "type_vocab_size",
)


def _read(config: Mapping[str, Any], family: str, scores: bool) -> EncoderSpec:
    for key in _COUNTS:
        if type(config[key]) is not int or config[key] < 1:
            raise CheckpointError(f"config.json: {key} is {config[key]!r}, not a positive number", param=key)
    if config["hidden_size"] % config["num_attention_heads"]:
        raise CheckpointError(
            f"hidden_size {config['hidden_size']} is no multiple of num_attention_heads "
            f"{config['num_attention_heads']}"
        )
    activation = ACTIVATIONS.get(str(config.get("hidden_act", "gelu")))
    if activation is None:
        raise CheckpointError(f"hidden_act {config['hidden_act']!r} is not supported", param="hidden_act")
    labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", DEFAULT_LABELS)
    if scores and labels != 1:
        raise CheckpointError(
            f"the classification head has {labels} labels; only one, a relevance score, is supported",
            param="id2label",
        )
    pad = config.get("pad_token_id")
    spec = EncoderSpec(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        position_rows=config["max_position_embeddings"],
        type_rows=config["type_vocab_size"],
        layer_norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        activation=activation,
        # transformers' where it is left out: RoBERTa's positions are counted from it.
        pad_token_id=int(pad) if pad is not None else (1 if family == "roberta" else 0),
        scores=scores,
        checkpoint_dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )
    if spec.max_positions < 1 or not 0 <= spec.pad_token_id < spec.vocab_size:
        raise CheckpointError(f"config.json: pad_token_id {pad!r} leaves no positions", param="pad_token_id")
    return spec
