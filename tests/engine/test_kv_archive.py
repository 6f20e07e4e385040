"""An archive is read as far as it is right, in whatever pieces it comes; nothing in it raises."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_shelf import FINGERPRINT, Shelf, random_shelf
from penstock.engine.kv_archive import (
    MAGIC,
    NOT_AN_ARCHIVE,
    ArchiveReader,
    ArchiveWriter,
    Block,
    PageShape,
    Record,
    Root,
)

SHAPE = PageShape({"weights": "ours"}, block_size=2, block_bytes=6)


def small() -> tuple[bytes, list[Record], list[int]]:
    """An archive of two paths, its records, and where each ends."""
    writer = ArchiveWriter(SHAPE, 4)
    data = writer.head
    records: list[Record] = []
    ends = []

    def root(salt: str) -> int:
        nonlocal data
        index, part = writer.root(salt)
        data += part
        records.append(Root(salt))
        ends.append(len(data))
        return index

    def block(parent: int, *tokens: int) -> int:
        nonlocal data
        page = bytes([*tokens, 0, 255, 0, 255])
        index, parts = writer.block(parent, tokens, page)
        data += b"".join(parts)
        records.append(Block(parent, tokens, page))
        ends.append(len(data))
        return index

    first = block(root(""), 1, 2)
    block(first, 3, 4)
    block(root("tenant \ud800"), 1, 2)
    block(first, 5, 6)
    return data, records, ends


DATA, RECORDS, ENDS = small()


def read(data: bytes, shape: PageShape = SHAPE, step: int = 1 << 20) -> tuple[list[Record], ArchiveReader]:
    """The records of an archive fed in pieces of `step` bytes."""
    reader = ArchiveReader(shape)
    records: list[Record] = []
    for start in range(0, len(data), step):
        records += reader.feed(data[start : start + step])
    reader.close()
    return records, reader


@pytest.mark.parametrize("step", [1, 7, 64, 1 << 20])
def test_what_was_written_is_read_in_any_pieces(step: int) -> None:
    """Salts may be any string."""
    records, reader = read(DATA, step=step)
    assert records == RECORDS
    assert (reader.problem, reader.num_blocks, reader.is_complete) == (None, 4, True)


def test_cut_at_any_byte_whole_records_before_the_cut_count() -> None:
    """And the cut is noticed, also where it falls between two records."""
    for cut in range(len(DATA)):
        records, reader = read(DATA[:cut])
        assert records == RECORDS[: sum(end <= cut for end in ENDS)]
        assert reader.problem == "the archive is cut short"


def test_any_flipped_bit_ends_the_reading_there() -> None:
    """Every bit of the whole archive: no record from the flip on is given out, none before it is lost."""
    for place in range(len(DATA)):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[place] ^= 1 << bit
            records, reader = read(bytes(damaged))
            assert records == RECORDS[: sum(end <= place for end in ENDS)], (place, bit)
            assert reader.problem is not None


@given(st.integers(0, 50), st.data())
def test_random_trees_survive_random_damage(seed: int, data: st.DataObject) -> None:
    """Cut, flipped, doubled or with something in between: what arrives is a part of what was sent."""
    shelf = random_shelf(seed)
    archive, texts = shelf.archive(), shelf.texts()
    place = data.draw(st.integers(0, len(archive)))
    junk = data.draw(st.binary(max_size=60))
    keeps = data.draw(st.integers(0, 60))
    damaged = archive[:place] + junk + archive[place + keeps :]
    other = Shelf(64)
    reader = other.bring(damaged)
    assert other.texts() <= texts
    assert damaged == archive or reader.problem is not None


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_raise(junk: bytes, has_magic: bool) -> None:
    """Whatever comes."""
    records, reader = read(MAGIC * has_magic + junk)
    assert not records
    assert reader.problem is not None


def test_what_follows_the_end_is_not_read() -> None:
    """And is told, but what was before it is right."""
    records, reader = read(DATA + b"x")
    assert records == RECORDS
    assert reader.problem == "the archive is followed by something else"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1", b"PK\x03\x04" * 20, MAGIC[:-2] + b"2\n"])
def test_other_files_are_known_for_what_they_are(data: bytes) -> None:
    """Also an archive of another version of the format."""
    assert read(data)[1].problem == NOT_AN_ARCHIVE


@pytest.mark.parametrize("name", ["weights", "block size", "layout", "something new"])
def test_an_archive_of_another_engine_is_not_read(name: str) -> None:
    """The reason names what differs."""
    shelf = random_shelf(1)
    other = Shelf(64, {**FINGERPRINT, name: "theirs"})
    reader = other.bring(shelf.archive())
    assert reader.differing == [name]
    assert reader.problem == f"the archive is of another engine, which differs in: {name}"
    assert not other.texts()


def test_what_is_held_is_bounded() -> None:
    """After a problem nothing is kept, and a header or a salt of absurd length is not waited for."""
    reader = ArchiveReader(SHAPE)
    reader.feed(MAGIC + b"\xff\xff\xff\xff")
    assert reader.problem == "the header is damaged"
    assert reader.feed(b"x" * 1_000_000) == []
    assert not reader._pending
    head = ArchiveWriter(SHAPE, 1).head
    assert read(head + b"\x01\xff\xff")[1].problem == "record 0 is damaged"


@pytest.mark.parametrize(
    "text",
    [
        b'{"fingerprint":{"weights":"ours"},"num_blocks":-1}',
        b'{"fingerprint":{"weights":"ours"},"num_blocks":' + b"9" * 40 + b"}",
        b'{"fingerprint":{"weights":"ours"},"num_blocks":1.5}',
        b'{"fingerprint":{"weights":"ours"},"num_blocks":1,"more":1}',
        b'{"fingerprint":{"weights":1},"num_blocks":1}',
        b'{"fingerprint":' + b"[" * 60_000,
        b'{"fingerprint":{"weights":"\xff"},"num_blocks":1}',
        b"null",
        b"",
    ],
)
def test_a_forged_header_is_a_damaged_one(text: bytes) -> None:
    """Its digest is right, since anybody can make one."""
    digest = hashlib.blake2b(text, digest_size=16, person=b"kv-header").digest()
    records, reader = read(MAGIC + len(text).to_bytes(4, "little") + text + digest + DATA)
    assert (records, reader.problem) == ([], "the header is damaged")


def test_a_root_is_followed_by_its_first_block() -> None:
    """So that roots, which need no page, cannot be sent without end."""
    writer = ArchiveWriter(SHAPE, 1)
    records, reader = read(writer.head + writer.root("a")[1] + writer.root("b")[1])
    assert records == [Root("a")]
    assert reader.problem == "record 1 is damaged"
