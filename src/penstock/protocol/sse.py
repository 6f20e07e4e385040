"""Server-sent events: an encoder for our streams and an incremental decoder for anybody's.

The decoder follows the WHATWG HTML standard, section 9.2.6: LF, CR and CRLF end a line, a byte-order mark
may lead, comments are skipped, data lines are joined by LF, an event without data is dropped, an event that
the end of the stream cuts off is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DONE = b"data: [DONE]\n\n"
CONTENT_TYPE = b"text/event-stream; charset=utf-8"
MAX_EVENT_BYTES = 4 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLargeError(ValueError):
    """An event grew past the decoder's bound."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event, its data lines joined by LF."""

    data: bytes
    event: bytes = b"message"
    id: bytes = b""


def encode_event(data: bytes) -> bytes:
    """One event carrying `data`, which has no line ends (JSON from our encoder has none)."""
    return b"data: " + data + b"\n\n"


class EventDecoder:
    """Bytes in any pieces in, events out. The work grows with the bytes, whatever the pieces."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_event_bytes = max_event_bytes
        self._head: bytes | None = b""
        """The stream's first bytes while they may be a byte-order mark, then None."""
        self._line: list[bytes] = []
        """Pieces of the line that has not ended."""
        self._skips_lf = False
        """True after a CR: a following LF belongs to it."""
        self._data: list[bytes] = []
        self._event = b""
        self._last_id = b""
        self._size = 0
        """Bytes of the event so far, its unfinished line included."""

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Takes more bytes; returns the events they completed, in order.

        Raises:
            EventTooLargeError: an event, complete or not, is over the bound.
        """
        if self._head is not None:
            data = self._head = self._head + data
            if _BYTE_ORDER_MARK.startswith(data):
                return []  # nothing but a possible beginning of the mark
            data, self._head = data.removeprefix(_BYTE_ORDER_MARK), None
        if not data:
            return []
        if self._skips_lf:
            data = data.removeprefix(b"\n")
        self._skips_lf = data.endswith(b"\r")
        *endings, rest = _LINE_END.split(data)
        events = []
        for ending in endings:
            self._extend_line(ending)
            line = b"".join(self._line)
            self._line.clear()
            event = self._take_line(line)
            if event is not None:
                events.append(event)
        self._extend_line(rest)
        return events

    def _extend_line(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self.max_event_bytes:
            raise EventTooLargeError(f"an event is larger than {self.max_event_bytes} bytes")
        if piece:
            self._line.append(piece)

    def _take_line(self, line: bytes) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"id" and b"\0" not in value:
            self._last_id = value
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event, self._size = [], b"", 0
        if not data:
            return None
        return ServerSentEvent(b"\n".join(data), event or b"message", self._last_id)
