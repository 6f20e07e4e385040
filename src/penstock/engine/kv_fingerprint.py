"""What KV pages depend on: two engines may share them only if all of it is equal.

Keys and values follow from the weights, from how these are stored and computed, from the rotary embedding
and the windows; the bytes of a page from the cache's format, block size and layout besides.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from penstock.base.errors import CheckpointError
from penstock.engine.memory import MemoryPlan
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import weight_files

Fingerprint = Mapping[str, str]
"""What must be equal, by a name that says what it is; values are for comparison and for the log."""


class _Entry(msgspec.Struct, frozen=True):
    """A tensor in the header; the entry of metadata has no values."""

    data_offsets: tuple[int, int] = (0, 0)


# Of every tensor this many pieces of this many bytes are read, evenly spread: all of one that is smaller.
NUM_PIECES = 16
PIECE_BYTES = 4096


def fingerprint_of(directory: Path, spec: DecoderSpec, memory: MemoryPlan, layout: str) -> Fingerprint:
    """The fingerprint of an engine that runs this checkpoint as planned, with pages of this layout.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    compute = memory.compute
    shape = dataclasses.asdict(spec)
    rope, windows = shape.pop("rope"), shape.pop("windows")
    return {
        "weights": weights_digest(directory),
        "weight format": f"{compute.weight_format} with {compute.dtype}",
        "shape": _shown(shape),
        "rope": _shown(rope),
        "windows": _digest_of(repr(windows).encode()),
        "KV format": compute.kv_format,
        "block size": str(memory.block_size),
        "layout": layout,
    }


def differences(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """The names of what differs, in order."""
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


def weights_digest(directory: Path) -> str:
    """Identifies the weights by every tensor's name, type and shape and by a sample of its values, in hex.

    Not read whole: two checkpoints that differ in a few values of a large tensor only may be taken for one.

    Raises:
        CheckpointError: the files cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in weight_files(directory):
        try:
            with path.open("rb", buffering=0) as file:
                _digest_file(file.fileno(), digest)
        except (OSError, ValueError, OverflowError) as error:  # ValueError: msgspec's too
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def _digest_file(descriptor: int, digest: hashlib.blake2b) -> None:
    """A safetensors file: 8 bytes of length, a JSON header of that length, the tensors."""
    length = min(int.from_bytes(os.pread(descriptor, 8, 0), "little"), os.fstat(descriptor).st_size)
    header = os.pread(descriptor, length, 8)
    digest.update(header)
    entries = msgspec.json.decode(header, type=dict[str, _Entry])
    for start, end in sorted(entry.data_offsets for entry in entries.values()):
        _sample(descriptor, 8 + length + start, 8 + length + end, digest)


def _sample(descriptor: int, start: int, end: int, digest: hashlib.blake2b) -> None:
    if end - start <= NUM_PIECES * PIECE_BYTES:
        digest.update(os.pread(descriptor, end - start, start))
        return
    for piece in range(NUM_PIECES):  # the first and the last bytes are among them
        place = start + (end - start - PIECE_BYTES) * piece // (NUM_PIECES - 1)
        digest.update(os.pread(descriptor, PIECE_BYTES, place))


def _shown(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(fields.items()))


def _digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
