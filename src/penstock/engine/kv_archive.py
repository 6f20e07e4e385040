"""KV blocks as a stream of bytes: a file between two runs, a body between two replicas.

    magic | length of header | header, JSON | digest
    then records:  root   kind 1 | length of salt | salt | digest
                   block  kind 2 | index of parent | tokens | page | digest

Records count from 0. A block's parent is a root or a block before it, and a root is followed by its first
block. A digest covers the record and its parent's digest, a root's parent being the header: so what is right
is right along with all that it depends on. Reading ends at the first record that is cut short, changed or
odd; those before it count. Numbers are little-endian. Digests guard against accidents; they are no signature.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Annotated

import msgspec

from penstock.engine.kv_fingerprint import Fingerprint, differences
from penstock.engine.kv_pages import Page

MAGIC = b"penstock-kv 1\n"
MAX_BLOCKS = 1 << 31
MAX_HEADER_BYTES = 1 << 16
DIGEST_BYTES = 16
NOT_AN_ARCHIVE = "this is no KV archive"
_LENGTH = struct.Struct("<I")
_ROOT = struct.Struct("<BH")
MAX_SALT_BYTES = 1 << 10
MAX_ROOT_BYTES = _ROOT.size + MAX_SALT_BYTES + DIGEST_BYTES
_BLOCK = struct.Struct("<BI")
_KIND_ROOT, _KIND_BLOCK = 1, 2
_HEADER_HASH, _ROOT_HASH, _BLOCK_HASH = b"kv-header", b"kv-root", b"kv-block"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an archive says about itself."""

    fingerprint: dict[str, str]
    num_blocks: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCKS)]


@dataclass(frozen=True, slots=True)
class Root:
    """Begins the paths of a salt."""

    salt: str


@dataclass(frozen=True, slots=True)
class Block:
    """One KV block below its parent, which is given by its index among the records."""

    parent: int
    tokens: tuple[int, ...]
    page: Page


Record = Root | Block


@dataclass(frozen=True, slots=True)
class PageShape:
    """Whose pages an archive holds, and how large they are."""

    fingerprint: Fingerprint
    block_size: int
    """Tokens of a block."""
    block_bytes: int

    @property
    def record_bytes(self) -> int:
        """Bytes of a block's record."""
        return _BLOCK.size + 4 * self.block_size + self.block_bytes + DIGEST_BYTES


def _digest(kind: bytes, *parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=kind)
    for part in parts:
        digest.update(part)
    return digest.digest()


def encode_salt(salt: str) -> bytes:
    """A salt's bytes; any string has some."""
    return salt.encode("utf-8", "surrogatepass")


def root_bytes(salt: str) -> int:
    """Bytes of a root's record."""
    return _ROOT.size + len(encode_salt(salt)) + DIGEST_BYTES


class ArchiveWriter:
    """Makes the records of an archive, in order; the caller writes them one after the other."""

    def __init__(self, shape: PageShape, num_blocks: int) -> None:
        """`num_blocks` blocks will follow."""
        self._tokens = struct.Struct(f"<{shape.block_size}I")
        text = msgspec.json.encode(Header(dict(shape.fingerprint), num_blocks))
        self._digest = _digest(_HEADER_HASH, text)
        self._digests: list[bytes] = []
        self.head = MAGIC + _LENGTH.pack(len(text)) + text + self._digest
        """What the archive begins with."""

    def root(self, salt: str) -> tuple[int, bytes]:
        """The index and the bytes of a root."""
        text = encode_salt(salt)
        digest = _digest(_ROOT_HASH, self._digest, text)
        return self._add(digest), _ROOT.pack(_KIND_ROOT, len(text)) + text + digest

    def block(self, parent: int, tokens: SequenceOf[int], page: Page) -> tuple[int, tuple[Page, ...]]:
        """The index and the bytes of a block, in parts: a page is not copied."""
        packed = self._tokens.pack(*tokens)
        digest = _digest(_BLOCK_HASH, self._digests[parent], packed, page)
        return self._add(digest), (_BLOCK.pack(_KIND_BLOCK, parent) + packed, page, digest)

    def _add(self, digest: bytes) -> int:
        self._digests.append(digest)
        return len(self._digests) - 1


class ArchiveError(Exception):
    """Why reading ended before the archive's end."""


class ArchiveReader:
    """Reads an archive as its bytes come, and gives out what is verified; never raises for what it reads.

    It holds at most one record and what it was fed last.
    """

    def __init__(self, shape: PageShape) -> None:
        """Archives of another fingerprint than the shape's are not read."""
        self._shape = shape
        self._tokens = struct.Struct(f"<{shape.block_size}I")
        self._pending = bytearray()
        self._digests: list[bytes] = []
        self._head_digest = b""
        self._is_root_open = False
        self.header: Header | None = None
        """Once it is verified and its pages are known to be like ours."""
        self.differing: list[str] = []
        """What differs from our fingerprint, if anything does."""
        self.num_blocks = 0
        """Verified so far."""
        self.problem: str | None = None
        """Why the rest is not read; None while all is well."""

    @property
    def is_complete(self) -> bool:
        """True once every block that the header promises was verified."""
        return self.header is not None and self.num_blocks >= self.header.num_blocks

    def feed(self, data: bytes) -> list[Record]:
        """Takes the next bytes; the records that became whole and are right."""
        if self.problem is not None:
            return []
        self._pending += data
        records: list[Record] = []
        place = 0
        try:
            while (end := self._end(place)) is not None:
                part = bytes(memoryview(self._pending)[place:end])
                if self.header is None:
                    self._read_head(part)
                else:
                    records.append(self._read_record(part))
                place = end
        except ArchiveError as error:
            self.problem = str(error)
            self._pending.clear()
        del self._pending[:place]
        return records

    def close(self) -> None:
        """Says that there is no more; a problem if there should be."""
        if self.problem is None and not self.is_complete:
            self.problem = "the archive is cut short"

    def _end(self, place: int) -> int | None:
        """Where the head or the record that begins at `place` ends; None if it is not all here yet."""
        length = self._length(place)
        return None if length is None or place + length > len(self._pending) else place + length

    def _length(self, place: int) -> int | None:
        here = len(self._pending) - place
        if self.header is None:
            if not MAGIC.startswith(self._pending[place : place + len(MAGIC)]):
                raise ArchiveError(NOT_AN_ARCHIVE)
            if here < len(MAGIC) + _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack_from(self._pending, place + len(MAGIC))
            if length > MAX_HEADER_BYTES:
                raise ArchiveError("the header is damaged")
            return len(MAGIC) + _LENGTH.size + int(length) + DIGEST_BYTES
        if here == 0:
            return None
        if self.is_complete:
            raise ArchiveError("the archive is followed by something else")
        kind = self._pending[place]
        if kind == _KIND_BLOCK and self._digests:
            return self._shape.record_bytes
        if kind != _KIND_ROOT or self._is_root_open:
            raise self._damaged()
        if here < _ROOT.size:
            return None
        _, length = _ROOT.unpack_from(self._pending, place)
        if length > MAX_SALT_BYTES:
            raise self._damaged()
        return _ROOT.size + int(length) + DIGEST_BYTES

    def _read_head(self, part: bytes) -> None:
        text, digest = part[len(MAGIC) + _LENGTH.size : -DIGEST_BYTES], part[-DIGEST_BYTES:]
        if _digest(_HEADER_HASH, text) != digest:
            raise ArchiveError("the header is damaged")
        try:
            header = msgspec.json.decode(text, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ArchiveError("the header is damaged") from error
        self.differing = differences(self._shape.fingerprint, header.fingerprint)
        if self.differing:
            raise ArchiveError(
                f"the archive is of another engine, which differs in: {', '.join(self.differing)[:200]}"
            )
        self._head_digest = digest
        self.header = header

    def _read_record(self, part: bytes) -> Record:
        digest, body = part[-DIGEST_BYTES:], memoryview(part)[:-DIGEST_BYTES]
        self._is_root_open = part[0] == _KIND_ROOT
        record: Record = (
            self._read_root(body, digest) if self._is_root_open else self._read_block(body, digest)
        )
        self._digests.append(digest)
        return record

    def _read_root(self, body: memoryview, digest: bytes) -> Root:
        text = bytes(body[_ROOT.size :])
        self._compare(digest, _digest(_ROOT_HASH, self._head_digest, text))
        try:
            return Root(text.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            raise self._damaged() from error

    def _read_block(self, body: memoryview, digest: bytes) -> Block:
        _, parent = _BLOCK.unpack_from(body)
        if parent >= len(self._digests):
            raise self._damaged()
        tokens, page = body[_BLOCK.size :][: self._tokens.size], body[_BLOCK.size + self._tokens.size :]
        self._compare(digest, _digest(_BLOCK_HASH, self._digests[parent], tokens, page))
        self.num_blocks += 1
        return Block(parent, self._tokens.unpack(tokens), page)

    def _compare(self, digest: bytes, expected: bytes) -> None:
        if digest != expected:
            raise self._damaged()

    def _damaged(self) -> ArchiveError:
        return ArchiveError(f"record {len(self._digests)} is damaged")
