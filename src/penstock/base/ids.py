"""Identifiers that sort by the time they were made."""

from __future__ import annotations

import secrets
import time

# Crockford's base 32: no I, L, O, U.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80


def new_id(prefix: str) -> str:
    """A ULID (26 letters: 48 bits of Unix milliseconds, 80 random bits) behind a prefix: `req-01j...`."""
    value = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    letters = []
    for _ in range(26):
        letters.append(_ALPHABET[value & 31])
        value >>= 5
    return f"{prefix}-{''.join(reversed(letters))}"
