"""Server-sent events: the same whatever the pieces, within bounds, by the standard."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.protocol.sse import (
    DONE,
    EventDecoder,
    EventTooLargeError,
    ServerSentEvent,
    encode_event,
)

BOM = b"\xef\xbb\xbf"
# Short pieces of streams, chosen so that they meet in every way.
_ATOMS = [b"data: a\r\n", b"data: b\n", b"data: c\r", b"data", b"data:", b"data: ", b"event: e", b"id: 7",
          b"id:\x00", b"retry: 5", b":", b": ping", b" ",
          b"x", b":x", b"\r", b"\n", b"\r\n", b"\n\n", BOM, "é你".encode(), b"\xff", b"dat"]  # fmt: skip
streams = st.lists(st.sampled_from(_ATOMS), max_size=40).map(b"".join)


def reference(stream: bytes) -> list[ServerSentEvent]:
    """The standard's algorithm on a whole stream, as plainly as can be."""
    text = stream.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, data, kind, last_id = [], [], b"", b""
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data:
                events.append(ServerSentEvent(b"\n".join(data), kind or b"message", last_id))
            data, kind = [], b""
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
        elif name == b"id" and b"\0" not in value:
            last_id = value
    return events


def feed(pieces: list[bytes], decoder: EventDecoder | None = None) -> list[ServerSentEvent]:
    """All events of a stream in pieces."""
    decoder = decoder or EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """A stream in pieces, some of them empty."""
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [ServerSentEvent(b"a")]),
        (b"data:a\r\rdata: b\r\n\r\n", [ServerSentEvent(b"a"), ServerSentEvent(b"b")]),
        (b"data:  a\ndata\ndata:b\n\n", [ServerSentEvent(b" a\n\nb")]),
        (BOM + b"data: a\n\n", [ServerSentEvent(b"a")]),
        (BOM + BOM + b"data: a\n\n", []),
        (b": comment\n\nevent: x\n\ndata: a\n\n", [ServerSentEvent(b"a")]),
        (b"event: x\nid: 1\ndata: a\n\ndata: b\n\n", [ServerSentEvent(b"a", b"x", b"1"),
                                                     ServerSentEvent(b"b", b"message", b"1")]),
        (b"id: 1\nid: 2\x00\nretry: 9\nother: z\ndata:\n\n", [ServerSentEvent(b"", b"message", b"1")]),
        (b"data: a\r\ndata: b\r\n\r\n", [ServerSentEvent(b"a\nb")]),
        (b"data: cut off\r\n", []),
        (b"data: cut off\n", []),
        (b"data: cut off", []),
        (b"data: a\n\ndata: cut off\n", [ServerSentEvent(b"a")]),
        (DONE, [ServerSentEvent(b"[DONE]")]),
    ],
)  # fmt: skip
def test_streams_by_the_standard(stream: bytes, events: list[ServerSentEvent]) -> None:
    """Whole and byte by byte."""
    assert feed([stream]) == events
    assert feed([bytes([byte]) for byte in stream]) == events


@given(streams, st.lists(st.integers(0, 200), max_size=12))
def test_the_pieces_do_not_matter(stream: bytes, places: list[int]) -> None:
    """Whole, byte by byte and cut anywhere give what the standard says of the whole."""
    expected = reference(stream)
    assert feed([stream]) == expected
    assert feed([bytes([byte]) for byte in stream]) == expected
    assert feed(cut(stream, places)) == expected


@given(st.binary())
def test_any_bytes_decode_to_something(stream: bytes) -> None:
    """Nothing raises below the bound."""
    assert feed([stream]) == reference(stream)


@given(st.binary().filter(lambda data: not {10, 13} & set(data)))
def test_what_is_encoded_is_decoded(data: bytes) -> None:
    """For any data without line ends."""
    assert feed([encode_event(data)]) == [ServerSentEvent(data)]


def test_an_event_is_given_out_with_its_last_byte() -> None:
    """Also where CR ends the lines: waiting for a possible LF would hold back every event by one."""
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"\r") == [ServerSentEvent(b"a")]
    assert decoder.feed(b"\ndata: b\n\n") == [ServerSentEvent(b"b")]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_an_event_may_be_as_large_as_the_bound(size: int) -> None:
    """One byte more is too much, wherever the cuts are, finished or not; each event counts by itself."""
    stream = b"data:" + b"x" * 59 + b"\n\n"
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    decoder = EventDecoder(max_event_bytes=64)
    assert len(feed(pieces * 3, decoder)) == 3
    with pytest.raises(EventTooLargeError, match="64 bytes"):
        feed([b"data:" + b"x" * 60, b"\n\n"], EventDecoder(max_event_bytes=64))
    with pytest.raises(EventTooLargeError):
        feed(pieces, EventDecoder(max_event_bytes=63))


def test_many_lines_count_together() -> None:
    """A peer cannot fill memory with short lines either."""
    with pytest.raises(EventTooLargeError):
        feed([b"data: x\n"] * 100, EventDecoder(max_event_bytes=500))


def test_a_long_event_in_single_bytes_is_linear_work() -> None:
    """A decoder that copies or searches its buffer on each piece needs minutes for this."""
    size = 1 << 18
    decoder = EventDecoder()
    decoder.feed(b"data:")
    for _ in range(size):
        assert not decoder.feed(b"x")
    assert decoder.feed(b"\n\n") == [ServerSentEvent(b"x" * size)]
