"""The whole config tree: defaults, then a YAML file, then the environment. Read once; never written back.

This is the only module that reads the environment: `PENSTOCK__A__B=value` sets `a.b`, the value being YAML.
An unknown key is refused with the nearest right name.
"""

from __future__ import annotations

import difflib
import json
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from penstock.asgi.settings import ServerSettings
from penstock.base.errors import ConfigurationError
from penstock.engine.settings import EngineSettings
from penstock.fleet.settings import ModelSettings, ReplicaSettings
from penstock.gateway.settings import UpstreamSettings

PREFIX = "PENSTOCK__"


class LogSettings(BaseModel):
    """Logs on standard error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged"
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: short lines on a terminal, JSON elsewhere"
    )


class Config(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: ServerSettings = Field(default_factory=ServerSettings)
    upstream: UpstreamSettings = Field(default_factory=UpstreamSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    models: dict[str, ModelSettings] = Field(
        default_factory=lambda: {"tiny": ModelSettings(replicas=[ReplicaSettings(engine=EngineSettings())])},
        description="models by the name that clients use; the built-in one if none is given",
        min_length=1,
    )


def load_config(path: Path | None, changes: Mapping[str, Any] | None = None) -> Config:
    """Reads the file, lays the environment over it, and `changes` (from the command line) over both.

    Raises:
        ConfigurationError: the file cannot be read, or a key or value is wrong; the message names it.
    """
    tree: dict[str, Any] = {} if path is None else _read_file(path)
    _merge(tree, _environment(os.environ))
    _merge(tree, changes or {})
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        where = "configuration" if path is None else str(path)
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigurationError(
            f"{where}: " + "; ".join(lines), param=_key(error.errors()[0]["loc"])
        ) from error


def child_environment(config: Config) -> dict[str, str]:
    """This process's environment with all of `config` set, for a child that reads its config from there."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    tree = config.model_dump(mode="json")
    return inherited | {f"{PREFIX}{key.upper()}": json.dumps(value) for key, value in tree.items()}


def let_threads_sleep() -> None:
    """Makes OpenMP threads sleep while they wait, unless the user says otherwise; call before torch loads.

    By default they spin, which takes the cores from gateway and clients on the same machine: on two busy
    cores a step of a small model took ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no config file {path}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8; a date like 2001-99-99
        raise ConfigurationError(f"the config file {path} cannot be read: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path}: the file must hold keys and values, not a {type(tree).__name__}")
    return tree


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        value = _read_value(name, environ[name])
        keys = name.removeprefix(PREFIX).lower().split("__")
        for key in reversed(keys):
            value = {key: value}
        _merge(tree, value, whole=())
    return tree


def _read_value(name: str, text: str) -> Any:
    """JSON where it is JSON, which is what child processes get: YAML reads its \\u escapes differently."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"the environment's {name} is not valid YAML: {error}", param=name
        ) from error


def _merge(base: dict[str, Any], over: Mapping[str, Any], whole: tuple[str, ...] = ("models",)) -> None:
    """Lays `over` over `base`: mappings are joined, but for those in `whole`, which are replaced."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict) and key not in whole:
            _merge(base[key], value, whole)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(detail: ErrorDetails) -> str:
    key = _key(detail["loc"])
    if detail["type"] != "extra_forbidden":
        given = "" if isinstance(detail["input"], (dict, list)) else f" (it is {detail['input']!r})"
        return f"{key}: {detail['msg'].removeprefix('Value error, ')}{given}"
    known = _known_keys(detail["loc"][:-1])
    near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
    hint = (
        f"did you mean {_key((*detail['loc'][:-1], near[0]))}?" if near else f"known here: {', '.join(known)}"
    )
    return f"unknown key {key}; {hint}"


def _key(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the settings class at a place in the tree."""
    kind: Any = Config
    for part in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(part)].annotation
            if isinstance(kind, types.UnionType):
                kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        else:
            kind = typing.get_args(kind)[-1]  # dict[str, X] or list[X]
    return sorted(kind.model_fields)
