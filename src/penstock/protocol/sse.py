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
    """Bytes in any pieces in, events out."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_event_bytes = max_event_bytes
        self._buffer = b""
        self._data: list[bytes] = []
        self._event = b""
        self._last_id = b""
        self._size = 0
        self._at_start = True

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Takes more bytes; returns the events they completed, in order.

        Raises:
            EventTooLargeError: an event, complete or not, is over the bound.
        """
        self._buffer += data
        if self._at_start:
            if b"\xef\xbb\xbf".startswith(self._buffer):
                return []  # nothing but a possible beginning of a byte-order mark
            self._buffer = self._buffer.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        events = []
        start = 0
        for end in _LINE_END.finditer(self._buffer):
            if end[0] == b"\r" and end.end() == len(self._buffer):
                break  # an LF may follow in the next piece
            event = self._take_line(self._buffer[start : end.start()])
            start = end.end()
            if event is not None:
                events.append(event)
        self._buffer = self._buffer[start:]
        if self._size + len(self._buffer) > self.max_event_bytes:
            raise EventTooLargeError(f"an event is larger than {self.max_event_bytes} bytes")
        return events

    def _take_line(self, line: bytes) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        self._size += len(line)
        if self._size > self.max_event_bytes:
            raise EventTooLargeError(f"an event is larger than {self.max_event_bytes} bytes")
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
