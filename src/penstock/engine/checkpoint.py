"""From what a user calls a model to a folder on disk: built-in, path, or Hugging Face id."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Literal

from penstock.base.errors import CheckpointError
from penstock.engine.encoder_spec import SUPPORTED as ENCODERS

Task = Literal["generate", "embed", "score"]
BUILTIN_PREFIX = "builtin:"
# A Hugging Face id: one owner, one name.
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
# What serving needs; leaves out duplicate formats (pickles, ONNX, GGUF, Mistral's own) that can double a
# download.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_HUB_DUPLICATES = ["consolidated*.safetensors", "original/*"]


def served_name(model: str) -> str:
    """The name that clients use: `tiny` for `builtin:tiny`, a folder's own name, a Hugging Face id as is."""
    if model.startswith(BUILTIN_PREFIX):
        return model.removeprefix(BUILTIN_PREFIX)
    path = _path(model)
    return path.resolve().name if path is not None and path.is_dir() else model


def builtin_names() -> list[str]:
    """Models that come with the package."""
    root = resources.files("penstock") / "builtin"
    if not root.is_dir():
        return []
    return sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and (entry / "config.json").is_file()
    )


def resolve(model: str) -> Path:
    """The model's folder; downloads a Hugging Face id into its cache if it is not there.

    Raises:
        CheckpointError: no such built-in, folder or id, or the download failed.
    """
    return find(model) or _from_hub(model)


def find(model: str, param: str = "model") -> Path | None:
    """The model's folder; None for a Hugging Face id, which is not looked up. `param` names the setting.

    Raises:
        CheckpointError: no such built-in or folder, and no Hugging Face id either.
    """
    if model.startswith(BUILTIN_PREFIX):
        name = model.removeprefix(BUILTIN_PREFIX)
        if name not in builtin_names():
            raise CheckpointError(
                f"there is no built-in model {name!r}; there is: {', '.join(builtin_names())}", param=param
            )
        return Path(str(resources.files("penstock") / "builtin" / name))
    path = _path(model)
    if path is not None and path.is_dir():
        return path
    if path is not None:
        raise CheckpointError(f"{model} is a file; give the folder that holds config.json", param=param)
    if not _HUB_ID.match(model) or model.startswith((".", "~")):
        raise CheckpointError(
            f"{model!r} is neither builtin:NAME, nor a folder, nor a Hugging Face id (owner/name)",
            param=param,
        )
    return None


def main_task(model: str) -> Task:
    """What a model is for, by its config.json, without a download; "generate" where that cannot be told."""
    try:
        directory = find(model)
        config = {} if directory is None else json.loads((directory / "config.json").read_text("utf-8"))
        scores = ENCODERS[config["architectures"][0]][1]
    except (CheckpointError, OSError, ValueError, LookupError, TypeError):
        return "generate"
    return "score" if scores else "embed"


def _path(model: str) -> Path | None:
    """The existing file or folder of that name; an empty name is not the current folder."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a file name; ~nobody; a null character
        return None


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download  # here: it takes half a second to import
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_DUPLICATES))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"Hugging Face has no model {model!r}, or it is gated and HF_TOKEN is missing", param="model"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"there is no folder {model!r}, and it could not be downloaded as a Hugging Face id: {error}",
            param="model",
        ) from error
