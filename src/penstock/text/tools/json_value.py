"""JSON that comes in pieces: how far one value reaches, and whether it is one (RFC 8259, nothing more
lenient).

Every character is looked at once, and what is kept of them is the open brackets.
"""

from __future__ import annotations

import re
from enum import Enum, auto

MAX_DEPTH = 128
"""Of brackets in brackets; json.loads of a client's gives up at about a thousand."""
SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPED = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")
_WORDS = {"t": "rue", "f": "alse", "n": "ull"}


class _State(Enum):
    """What may come next."""

    VALUE = auto()
    ITEM_OR_END = auto()
    KEY_OR_END = auto()
    KEY = auto()
    COLON = auto()
    COMMA_OR_END = auto()
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    WORD = auto()
    NUMBER = auto()


def _number_table() -> dict[str, dict[str, str]]:
    """Of a number's parts, which character leads to which."""
    digits, point, power = "0123456789", {".": "point"}, dict.fromkeys("eE", "power")
    whole = dict.fromkeys(digits, "whole")
    fraction, exponent = dict.fromkeys(digits, "fraction"), dict.fromkeys(digits, "exponent")
    return {
        "minus": {**whole, "0": "zero"},
        "zero": {**point, **power},
        "whole": {**whole, **point, **power},
        "point": fraction,
        "fraction": {**fraction, **power},
        "power": {**exponent, "+": "sign", "-": "sign"},
        "sign": exponent,
        "exponent": exponent,
    }


_NUMBER = _number_table()
_NUMBER_STARTS = {**_NUMBER["minus"], "-": "minus"}
_NUMBER_ENDS = frozenset({"zero", "whole", "fraction", "exponent"})


class JsonValue:
    """One value, from its first character (no space before it) to its last."""

    def __init__(self) -> None:
        self.is_complete = False
        self.is_broken = False
        self._state = _State.VALUE
        self._open: list[str] = []  # brackets, by what closes them
        self._is_key = False
        self._rest = ""  # of true, false, null
        self._num_hex = 0
        self._part = ""  # of a number

    def feed(self, text: str, at: int) -> int:
        """Reads on from `at`; returns where it stopped: behind the value, at what breaks it, or at the end.

        A number is complete where something else follows.
        """
        while at < len(text) and not (self.is_complete or self.is_broken):
            at = self._step(text, at)
        return at

    def _step(self, text: str, at: int) -> int:
        """Reads something, or changes state, or finds the value broken."""
        state = self._state
        if state is _State.STRING:
            return self._string(text, at)
        if state is _State.NUMBER:
            return self._number(text, at)
        character = text[at]
        if state is _State.ESCAPE:
            self._num_hex = 4
            self._state = _State.HEX if character == "u" else _State.STRING
            return self._accept(character == "u" or character in _ESCAPED, at)
        if state is _State.HEX:
            self._num_hex -= 1
            self._state = _State.HEX if self._num_hex else _State.STRING
            return self._accept(character in _HEX, at)
        if state is _State.WORD:
            expected, self._rest = self._rest[0], self._rest[1:]
            if character == expected and not self._rest:
                self._end_value()
            return self._accept(character == expected, at)
        if character in " \t\n\r" and self._open:
            found = SPACE.match(text, at)
            return found.end() if found else at
        return self._structure(character, at)

    def _structure(self, character: str, at: int) -> int:
        """Brackets, commas, colons and the first characters of values, where one of them is due."""
        state = self._state
        if state is _State.COLON:
            self._state = _State.VALUE
            return self._accept(character == ":", at)
        if state is _State.COMMA_OR_END and character == ",":
            self._state = _State.KEY if self._open[-1] == "}" else _State.VALUE
            return at + 1
        may_end = state in (_State.COMMA_OR_END, _State.ITEM_OR_END, _State.KEY_OR_END)
        if may_end and character == self._open[-1]:
            self._open.pop()
            self._end_value()
            return at + 1
        if state in (_State.KEY, _State.KEY_OR_END):
            self._is_key, self._state = True, _State.STRING
            return self._accept(character == '"', at)
        return self._accept(state is not _State.COMMA_OR_END and self._begin_value(character), at)

    def _begin_value(self, character: str) -> bool:
        """False if no value begins so."""
        if character == '"':
            self._is_key, self._state = False, _State.STRING
        elif character in "{[" and len(self._open) < MAX_DEPTH:
            self._open.append("}" if character == "{" else "]")
            self._state = _State.KEY_OR_END if character == "{" else _State.ITEM_OR_END
        elif character in _WORDS:
            self._rest, self._state = _WORDS[character], _State.WORD
        elif character in _NUMBER_STARTS:
            self._part, self._state = _NUMBER_STARTS[character], _State.NUMBER
        else:
            return False
        return True

    def _string(self, text: str, at: int) -> int:
        found = _PLAIN.match(text, at)
        at = found.end() if found else at
        if at == len(text):
            return at
        if text[at] == "\\":
            self._state = _State.ESCAPE
        elif text[at] == '"' and self._is_key:
            self._state = _State.COLON
        elif text[at] == '"':
            self._end_value()
        else:
            return self._accept(False, at)
        return at + 1

    def _number(self, text: str, at: int) -> int:
        part = _NUMBER[self._part].get(text[at])
        if part is not None:
            self._part = part
            return at + 1
        if self._part not in _NUMBER_ENDS:
            return self._accept(False, at)
        self._end_value()
        return at

    def _end_value(self) -> None:
        self._state = _State.COMMA_OR_END
        self.is_complete = not self._open

    def _accept(self, is_right: bool, at: int) -> int:
        """Past the character, unless it is wrong."""
        self.is_broken = self.is_broken or not is_right
        return at + is_right
