"""The bytes that a single token stands for: a token may hold a part of a character, which no text can."""

from __future__ import annotations

import re
from functools import cache

_BYTE_FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space
_CONTINUATION = "##"  # how WordPiece marks a piece that continues a word


def token_bytes(piece: str, *, is_byte_level: bool) -> bytes:
    """The bytes of a vocabulary entry, which `is_byte_level` says how to read."""
    if is_byte_level:
        table = byte_level_table()
        if all(character in table for character in piece):
            return bytes(table[character] for character in piece)
    if found := _BYTE_FALLBACK.fullmatch(piece):
        return bytes([int(found[1], 16)])
    return piece.removeprefix(_CONTINUATION).replace(_SPACE, " ").encode(errors="replace")


@cache
def byte_level_table() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (Radford et al. 2019).

    Bytes that are printable characters of Latin-1 stand for themselves, the others for those from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}
