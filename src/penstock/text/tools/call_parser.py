"""What the formats of tool calls have in common: text up to a call, the call's object, text after it.

A call begins, for the client, when its name is known to be a tool's and its arguments have opened as an
object; until then everything is held, and comes out as content if there is no call after all. From then on
the arguments go out as they come, and:

- What breaks the JSON, or is not what ends a call in this format, is content from there on. Arguments that
  went out stay.
- Where the text ends, the call ends. Markup that was due is not missed, nothing is invented.

White space before the first call, between calls and after the last is layout, not content. Text that was held
is not searched for calls again, so the work is linear in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection

from penstock.text.fragments import CallArguments, CallStart, Content
from penstock.text.incremental import IncrementalParser, Script
from penstock.text.tools.json_value import SPACE, JsonValue

ARGUMENTS = ("arguments", "parameters")
"""Most formats' word and Llama's; models take one for the other, so both count everywhere."""
MEMBERS = frozenset({"name", *ARGUMENTS, "id", "type"})
"""The last two models add on their own. An object with other members is no call, so JSON is not held."""


class CallParser(IncrementalParser):
    """An OutputParser of answers with tool calls; a format's own parser is a script over these parts."""

    def __init__(self, names: Collection[str], new_id: Callable[[], str], *, parallel: bool) -> None:
        """`names`: the tools that may be called. Unless `parallel` an answer ends with its first call."""
        super().__init__()
        self.is_complete = False
        self._names = frozenset(names)
        self._new_id = new_id
        self._is_parallel = parallel
        self._num_calls = 0
        self._is_layout = True  # no content yet, or none since the last call
        self._name: str | None = None  # of the call being read
        self._early: str | None = None  # its arguments, if they came before its name
        self._has_begun = False  # for the client

    @property
    def has_calls(self) -> bool:
        """See OutputParser."""
        return self._num_calls > 0

    def _give(self, text: str) -> None:
        self._is_layout = False
        self._out.append(Content(text))

    def _skip_layout(self, layout: re.Pattern[str] = SPACE) -> Script[None]:
        """Holds what is layout if a call follows, or the end after a call."""
        yield from self._run(layout)
        if self.has_calls and self._is_layout and not (yield from self._next()):
            self._drop()

    def _find(self, mark: str) -> Script[bool]:
        """Gives the text through up to `mark`, which is held; False at the end of the text."""
        while (yield from self._next()):
            if (yield from self._word(mark)) is not None:
                self._has_begun = False
                return True
            self._release()
            yield from self._until(mark[0])
        self._release()
        return False

    def _break_off(self) -> Script[None]:
        """What is held is no call: content, unless it is the end of one, unfinished as the text ended."""
        if self._has_begun and not (yield from self._next()):
            self._drop()
        self._release()

    def _object(self) -> Script[bool]:
        """Reads `{"name": ..., "arguments": {...}}`, members in any order; True if it is a whole call."""
        sign = yield from self._word("{")
        if sign is None:
            return False
        self._name = self._early = None
        self._has_begun = False
        while sign in ("{", ","):
            yield from self._run(SPACE)
            if not (yield from self._member()):
                return False
            yield from self._run(SPACE)
            sign = yield from self._word(",", "}")
        if sign is None or not self._has_begun:
            return False
        self._end()
        return True

    def _member(self) -> Script[bool]:
        key = yield from self._string()
        if key not in MEMBERS:
            return False
        yield from self._run(SPACE)
        if (yield from self._word(":")) is None:
            return False
        yield from self._run(SPACE)
        if key in ARGUMENTS:
            return (yield from self._arguments())
        text = yield from self._string()
        if key == "type":
            return text == "function"
        if key == "id":
            return text is not None
        if text is None or self._name is not None or not self._may_call(text):
            return False
        self._name = text
        if self._early is not None:
            self._begin(text)
            self._out.append(CallArguments(self._num_calls - 1, self._early))
        return True

    def _arguments(self) -> Script[bool]:
        """Reads an object as arguments; they go out at once if the name is known."""
        if self._early is not None or self._has_begun or (yield from self._next()) != "{":
            return False
        if self._name is None:
            self._early = yield from self._value()
            return self._early is not None
        self._begin(self._name)
        value = JsonValue()
        while not value.is_complete and (yield from self._next()):
            if text := self._take(value.feed(self._text, self._at)):
                self._out.append(CallArguments(self._num_calls - 1, text))
            if value.is_broken:
                break
        return value.is_complete

    def _string(self) -> Script[str | None]:
        """Reads and holds a string; None if there is none."""
        if (yield from self._next()) != '"':
            return None
        text = yield from self._value()
        return None if text is None else str(json.loads(text))

    def _value(self) -> Script[str | None]:
        """Reads and holds a JSON value; None if it is broken or cut."""
        value, read = JsonValue(), []
        while not value.is_complete:
            if not (yield from self._next()):
                return None
            read.append(self._hold(value.feed(self._text, self._at)))
            if value.is_broken:
                return None
        return "".join(read)

    def _may_call(self, name: str) -> bool:
        """Not twice unless in parallel, also if the first call broke off."""
        return name in self._names and (self._is_parallel or not self.has_calls)

    def _begin(self, name: str) -> None:
        """Tells of a call; what was held was its markup."""
        self._drop()
        self._out.append(CallStart(self._num_calls, self._new_id(), name))
        self._num_calls += 1
        self._has_begun = True

    def _end(self) -> None:
        """The call is whole."""
        self._drop()
        self._is_layout = True
        self.is_complete = not self._is_parallel
