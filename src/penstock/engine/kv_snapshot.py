"""The prefix cache on disk between two runs of an engine."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from penstock.engine.kv_archive import ArchiveReader, ArchiveWriter
from penstock.engine.kv_pages import Page
from penstock.engine.kv_store import BATCH_BYTES, KVStore
from penstock.engine.prefix_cache import Node

logger = logging.getLogger(__name__)
# A file half written that is older belongs to a process that was killed.
STALE_AFTER_S = 3600.0


def save_snapshot(
    store: KVStore, path: Path, max_bytes: int, is_wanted: Callable[[], bool] = lambda: True
) -> int:
    """Writes what was used last, at most `max_bytes`, in place of the file's old content; how many blocks.

    The engine must not run. The file is replaced as a whole or not at all: not if nothing is cached, if it
    cannot be written, which is logged, or once `is_wanted` says no. Only its owner may read it.
    """
    head = len(ArchiveWriter(store.shape, store.tables.pool.num_blocks).head)
    nodes = store.youngest(max_bytes - head)
    if not nodes:
        return 0
    started = time.perf_counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        size = _replace(path, _archive(store, nodes), is_wanted)
    except OSError as error:
        logger.warning("KV snapshot not saved", extra={"path": str(path), "error": str(error)})
        return 0
    if not size:
        logger.warning(
            "KV snapshot not saved", extra={"path": str(path), "error": "it was given up half-way"}
        )
        return 0
    logger.info(
        "KV snapshot saved",
        extra={
            "path": str(path),
            "tokens": len(nodes) * store.shape.block_size,
            "left_out": store.tables.pool.num_cached - len(nodes),
            "mib": round(size / (1 << 20), 1),
            "seconds": round(time.perf_counter() - started, 2),
        },
    )
    return len(nodes)


def restore_snapshot(store: KVStore, path: Path) -> int:
    """Brings back what a snapshot holds and this engine can use; how many blocks.

    The engine must not run. Never raises for what the file holds: what is cut short, changed or of another
    engine is left out, which is logged in one line.
    """
    reader, incoming = ArchiveReader(store.shape), store.restoring()
    started = time.perf_counter()
    try:
        with path.open("rb", buffering=0) as file:
            while reader.problem is None and not incoming.is_full and (data := file.read(BATCH_BYTES)):
                incoming.take(reader.feed(data))
    except FileNotFoundError:
        return 0
    except OSError as error:
        logger.warning("KV snapshot not read", extra={"path": str(path), "error": str(error)})
        return incoming.num_placed
    if not incoming.is_full:
        reader.close()
    problem = reader.problem or ("there is no more room in the KV pool" if not reader.is_complete else None)
    logger.info(
        "KV snapshot restored" if incoming.num_placed else "KV snapshot not used",
        extra={
            "path": str(path),
            "tokens": incoming.num_placed * store.shape.block_size,
            "seconds": round(time.perf_counter() - started, 2),
        }
        | ({} if problem is None else {"left_out_because": problem}),
    )
    return incoming.num_placed


def is_usable(path: Path) -> bool:
    """False if there is something at `path` that is no file, so that no snapshot can be."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # not there yet; or not to be had, which reading and writing say in their time
    except ValueError:  # no name that a file could have
        return False


def _archive(store: KVStore, nodes: list[tuple[str, Node]]) -> Iterator[list[Page]]:
    """The archive's bytes in batches."""
    writer = ArchiveWriter(store.shape, len(nodes))
    yield [writer.head]
    roots: dict[str, int] = {}
    indices: dict[Node, int] = {}
    for start in range(0, len(nodes), store.batch_blocks):
        batch = nodes[start : start + store.batch_blocks]
        parts: list[Page] = []
        for (salt, node), page in zip(batch, store.read([node for _, node in batch]), strict=True):
            parent = None if node.parent is None else indices.get(node.parent)
            if parent is None:
                if salt not in roots:
                    roots[salt], record = writer.root(salt)
                    parts.append(record)
                parent = roots[salt]
            indices[node], block = writer.block(parent, node.tokens, page.data)
            parts += block
        yield parts


def _replace(path: Path, batches: Iterator[list[Page]], is_wanted: Callable[[], bool]) -> int:
    """Writes a file beside `path` and gives it that name; its bytes, 0 if it was no longer wanted."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    partial = Path(name)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            for parts in batches:
                if not is_wanted():
                    return 0
                file.writelines(parts)
            file.flush()
            size = file.tell()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return size


def _remove_stale(path: Path) -> None:
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):
            if partial.stat().st_mtime < time.time() - STALE_AFTER_S:
                partial.unlink()
