"""How a checkpoint wants its embeddings made, from the files that sentence-transformers leaves beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from penstock.base.errors import CheckpointError
from penstock.engine.pooling import Pooling
from penstock.text.tokenizer import read_json

logger = structlog.get_logger(__name__)
MODULES = "modules.json"
POOLING_FOLDER = "1_Pooling"
# Names of the ways to pool: in older files a switch for each, in newer ones a word.
_SWITCHES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_BUILT = {"mean": Pooling.MEAN, "lasttoken": Pooling.LAST, "cls": Pooling.CLS}
# What the pipeline may consist of; another part (Dense, say) would change every vector.
_KNOWN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})


@dataclass(frozen=True, slots=True)
class EmbeddingDefaults:
    """What applies where a request says nothing."""

    size: int
    """Numbers in a vector."""
    pooling: Pooling
    is_normalised: bool = True

    @staticmethod
    def of_checkpoint(directory: Path, size: int, pooling: Pooling) -> EmbeddingDefaults:
        """Reads modules.json and what it points to; `pooling` holds where they say nothing.

        Raises:
            CheckpointError: they cannot be read, or ask for what is not built.
        """
        modules = _read_modules(directory)
        kinds = {_kind(module): str(module.get("path", "")) for module in modules}
        if unbuilt := sorted(kinds.keys() - _KNOWN_MODULES):
            raise CheckpointError(
                f"{directory / MODULES} asks for {', '.join(unbuilt)}, which is not supported", param=MODULES
            )
        path = directory / kinds.get("Pooling", POOLING_FOLDER) / "config.json"
        config = read_json(directory / "config_sentence_transformers.json")
        if name := config.get("default_prompt_name"):
            logger.warning("the checkpoint wants a prompt before each text; clients must send it", name=name)
        return EmbeddingDefaults(
            size=size,
            pooling=_pooling(path) or pooling,
            is_normalised="Normalize" in kinds if modules else True,
        )


def read_longest_text(directory: Path) -> int | None:
    """Tokens of the longest text that a checkpoint says it was made for; None if it does not say.

    Raises:
        CheckpointError: sentence_bert_config.json is there and cannot be read.
    """
    longest = read_json(directory / "sentence_bert_config.json").get("max_seq_length")
    return longest if type(longest) is int and longest > 0 else None


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _read_modules(directory: Path) -> list[dict[str, Any]]:
    path = directory / MODULES
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _pooling(path: Path) -> Pooling | None:
    """The one way to pool that a pooling module's config.json names; None if there is no such file."""
    config = read_json(path)
    if not config:
        return None
    mode = config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else [name for key, name in _SWITCHES.items() if config.get(key)]
    if len(modes) != 1 or modes[0] not in _BUILT:
        raise CheckpointError(
            f"{path} asks for pooling by {' and '.join(map(str, modes)) or 'nothing'}; supported is one of "
            f"{', '.join(_BUILT)}",
            param="pooling_mode",
        )
    return _BUILT[modes[0]]
