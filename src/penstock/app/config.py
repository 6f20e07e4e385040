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
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from penstock.asgi.settings import ServerSettings
from penstock.base.errors import ConfigurationError
from penstock.engine.settings import EngineSettings
from penstock.fleet.settings import EnginesSettings, ModelSettings, ReplicaSettings
from penstock.gateway.settings import UpstreamSettings
from penstock.protocol.generation import MAX_NAME_LENGTH
from penstock.protocol.strict import shown

PREFIX = "PENSTOCK__"
# Control characters, line and paragraph separators, lone surrogates: names go into URLs, logs and terminals.
_NO_NAME_CATEGORIES = frozenset({"Cc", "Zl", "Zp", "Cs"})


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
    engines: EnginesSettings = Field(default_factory=EnginesSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    models: dict[str, ModelSettings] = Field(
        default_factory=lambda: {"tiny": ModelSettings(replicas=[ReplicaSettings(engine=EngineSettings())])},
        description="models by the name that clients use; the built-in one if none is given",
        min_length=1,
    )

    @field_validator("models")
    @classmethod
    def _have_names(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name in models:
            if not 0 < len(name) <= MAX_NAME_LENGTH:
                raise ValueError(
                    f"a model's name has 1 to {MAX_NAME_LENGTH} characters, {shown(name)!r} has {len(name)}"
                )
            if any(unicodedata.category(character) in _NO_NAME_CATEGORIES for character in name):
                raise ValueError(f"the model's name {name!r} holds a control character")
        _check_adapters(models)
        return models


def _check_adapters(models: Mapping[str, ModelSettings]) -> None:
    """Requests name adapters as they name models: each name must lead to one."""
    owners = {name: name for name in models}
    for name, model in models.items():
        for adapter in model.adapter_names:
            if not 0 < len(adapter) <= MAX_NAME_LENGTH or not adapter.isprintable():
                raise ValueError(
                    f"an adapter's name has 1 to {MAX_NAME_LENGTH} printable characters, "
                    f"not {shown(adapter)!r}"
                )
            if adapter in owners:
                raise ValueError(f"the adapter {adapter!r} of {name!r} has a name that is taken")
            owners[adapter] = name


def load_config(
    path: Path | None, changes: Mapping[str, Any] | None = None, *, sole: str | None = None
) -> Config:
    """Reads the file, lays the environment over it, and `changes` (from the command line) over both.

    The models of `changes` replace all others; `sole` names the option that gave them, if there must be no
    others to replace.

    Raises:
        ConfigurationError: the file cannot be read, or a key or value is wrong; the message names it.
    """
    tree: dict[str, Any] = {} if path is None else _read_file(path)
    source = f"the config file {path}" if "models" in tree else f"the environment ({PREFIX}MODELS...)"
    _merge(tree, _environment(os.environ))
    if sole is not None and "models" in tree:
        raise ConfigurationError(
            f"{sole} and {source} both say which models are served; leave one out", param="models"
        )
    _merge(tree, changes or {}, whole=("models",))
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
        tree = _read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no config file {path}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8; a date like 2001-99-99
        raise ConfigurationError(f"the config file {path} cannot be read: {_why(error)}") from error
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
        _merge(tree, value)
    return tree


def _read_value(name: str, text: str) -> Any:
    """JSON where it is JSON, which is what child processes get: YAML reads its \\u escapes differently."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except ValueError:
        pass
    try:
        return _read_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"the environment's {name} is not valid YAML: {_why(error)}", param=name
        ) from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that is there twice is left to the YAML reader, which says where."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """YAML's own reader takes the last of two equal keys and drops the first in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


def _read_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _why(error: Exception) -> str:
    """In one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return str(error)


def _merge(base: dict[str, Any], over: Mapping[str, Any], whole: tuple[str, ...] = ()) -> None:
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
