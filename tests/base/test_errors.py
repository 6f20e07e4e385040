"""The error tree: complete, drawn as it is, and with sensible marks on every class."""

from __future__ import annotations

import inspect
import re

import pytest

from penstock.base import errors
from penstock.base.errors import (
    CapacityError,
    ClientError,
    ConfigurationError,
    EngineError,
    InternalError,
    PenstockError,
    UpstreamError,
)

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, PenstockError) and value.__module__ == errors.__name__
]
_LINE = re.compile(
    r"^    (?P<bars>[│ ]*)(?:├──|└──) (?P<name>\w+) +(?P<meaning>.*?)(?: {2,}(?P<status>\d.*))?$"
)


def drawn_tree() -> dict[str, tuple[str, str | None]]:
    """Class name -> (parent's name, what the drawing says of its status)."""
    assert errors.__doc__ is not None
    found: dict[str, tuple[str, str | None]] = {}
    group = ""
    for line in errors.__doc__.splitlines():
        if match := _LINE.match(line):
            is_group = not match["bars"]
            found[match["name"]] = ("PenstockError" if is_group else group, match["status"])
            group = match["name"] if is_group else group
    return found


def test_the_drawing_is_the_tree() -> None:
    """Every class is drawn once, below its parent."""
    drawn = {name: parent for name, (parent, _) in drawn_tree().items()}
    real = {kind.__name__: kind.__base__.__name__ for kind in CLASSES if kind is not PenstockError}
    assert drawn == real


def test_the_drawn_statuses_are_the_classes() -> None:
    """A group lists its members' statuses, a leaf its own."""
    by_name = {kind.__name__: kind for kind in CLASSES}
    for name, (_, status) in drawn_tree().items():
        if status is not None and status != "4xx":
            assert str(by_name[name].status) in status.split(", "), name


def test_codes_are_unique() -> None:
    """A code names one class; the base, which nobody raises, has that of a defect of ours."""
    codes = [kind.code for kind in CLASSES if kind is not PenstockError]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_is_marked_and_explained(kind: type[PenstockError]) -> None:
    """Each says what it is, and its log level is one that structlog has."""
    assert kind.__doc__
    assert "code" in vars(kind)
    assert kind.log_level in {"debug", "info", "warning", "error"}
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.type)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_fault_decides_status_retry_and_level(kind: type[PenstockError]) -> None:
    """A client's fault is 4xx, not retried, no error in our log; ours is 5xx or, if full, 429."""
    if issubclass(kind, ClientError):
        assert 400 <= kind.status < 500
        assert kind.type == "invalid_request_error"
        assert not kind.retryable
        assert kind.log_level in {"debug", "info"}
    elif issubclass(kind, CapacityError):
        assert kind.status in {429, 503, 504}
        assert kind.retryable
    elif issubclass(kind, UpstreamError):
        assert kind.status in {502, 504}
        assert kind.retryable
    elif issubclass(kind, EngineError | InternalError | ConfigurationError):
        assert kind.status == 500
        assert not kind.retryable


def test_every_class_belongs_to_one_group() -> None:
    """No error hangs below the root by itself, but for the defect of ours."""
    groups = {"ClientError", "CapacityError", "UpstreamError", "EngineError", "InternalError"}
    groups |= {"ConfigurationError"}
    assert {kind.__name__ for kind in CLASSES if kind.__base__ is PenstockError} == groups


def test_an_error_keeps_what_it_was_told() -> None:
    """Message, field and waiting time travel with it; its text is the message."""
    error = errors.QueueFullError("full", param="model", retry_after_s=3)
    assert (error.message, error.param, error.retry_after_s, str(error)) == ("full", "model", 3, "full")
