"""What the gateway and the owner of the processes tell each other about models that can sleep.

The gateway knows who uses a model, the owner starts and ends engines. The gateway gives orders, the owner
answers each with the model's state after it; states also come unasked. A state counts the orders that it
takes into account, so the gateway can leave aside what was said before its last order arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Phase = Literal["asleep", "loading", "ready", "unloading", "failed"]
UnloadReason = Literal["idle", "room", "asked"]


class Message(msgspec.Struct, frozen=True, tag=str.lower, forbid_unknown_fields=True):
    """One line between two processes; JSON says its type in `type`."""


class ModelState(Message, frozen=True):
    """From the owner: how far a model is."""

    model: str
    phase: Phase
    orders_seen: int = 0
    """The gateway's orders, about any model, that were carried out or begun before this was said."""
    reason: str = ""
    """Of a load that failed."""
    lacks_room: bool = False
    """It failed because the memory is in use, not because the model is bad."""
    retry_after_s: int = 0
    """Seconds until a failed model may be tried again."""
    load_seconds: float | None = None
    """How long the load took that has just ended, well or not; None if none has."""


class Roster(Message, frozen=True):
    """From the owner, first of all: every model that it owns, and which of them are loaded at first use."""

    models: Sequence[ModelState]
    on_first_use: Sequence[str]


class MakeRoom(Message, frozen=True):
    """From the owner: unload one of these as soon as one is idle. Replaces the last such message."""

    models: Sequence[str]
    orders_seen: int = 0


class Wake(Message, frozen=True):
    """From the gateway: load the model."""

    model: str


class Unload(Message, frozen=True):
    """From the gateway, which lets no request pass to the model any more: end its engine."""

    model: str
    reason: UnloadReason


Order = Wake | Unload
