"""An adapter as the engine carries it: of what is loaded, what a sequence is computed with. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """A LoRA adapter in memory. It stays there as long as a name or a sequence holds it."""

    number: int
    """Of its loading, from 1: the same files loaded again are another adapter."""
    name: str
    path: str
    created: int
    """Unix seconds at which it was loaded."""
    weights: Any
    """In the form in which the engine's runner computes with them."""
