"""Answers of /v1/models."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix seconds at which the server began to serve it."""
    owned_by: str = "penstock"
    parent: str | UnsetType = UNSET
    """The model that an adapter changes; vLLM's field, left out of models that are none."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All served models."""

    data: list[Model]
    object: Literal["list"] = "list"
