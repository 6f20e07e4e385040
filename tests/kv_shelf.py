"""A prefix cache over real pages without a model: every page says which tokens it holds, and whose."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Mapping

import torch

from penstock.engine.block_tables import BlockTables
from penstock.engine.blocks import BlockPool
from penstock.engine.kv_archive import ArchiveReader, ArchiveWriter
from penstock.engine.kv_pages import TorchPages
from penstock.engine.kv_store import KVStore
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence

SIZE = 2
FINGERPRINT = {"weights": "ours", "block size": str(SIZE), "layout": TorchPages.layout}
NUM_LAYERS, NUM_HEADS, HEAD_DIM = 2, 1, 2


class Shelf:
    """Tables, pages and the store over them."""

    def __init__(self, num_blocks: int = 32, fingerprint: Mapping[str, str] | None = None) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.tables = BlockTables(self.pool, is_caching=True)
        shape = (NUM_LAYERS, num_blocks * SIZE, NUM_HEADS, HEAD_DIM)
        self.pages = TorchPages(torch.zeros(shape), torch.zeros(shape), SIZE)
        self.store = KVStore(self.tables, self.pages, fingerprint or FINGERPRINT)
        self.running: list[Sequence] = []

    def begin(self, text: str, salt: str = "") -> Sequence:
        """Computes a prompt, a token per character, and leaves its sequence running."""
        one = Sequence(0, [ord(letter) for letter in text], SamplingParams(max_tokens=1), cache_salt=salt)
        assert self.tables.admit(one, reserve=0)
        for index in range(len(one.path), len(text) // SIZE):
            self.pages.write(one.block_table[index], self.page_of(text[: (index + 1) * SIZE], salt))
        one.num_computed = len(text)
        self.tables.publish(one)
        self.running.append(one)
        return one

    def end(self, one: Sequence) -> None:
        """The sequence ends."""
        self.running.remove(one)
        self.tables.release(one)

    def compute(self, text: str, salt: str = "") -> None:
        """Computes a prompt and ends it."""
        self.end(self.begin(text, salt))

    def page_of(self, text: str, salt: str) -> bytes:
        """What the last block of `text` holds."""
        seed = hashlib.blake2b(f"{salt}/{text}".encode("utf-8", "surrogatepass")).digest()
        return (seed * self.pages.block_bytes)[: self.pages.block_bytes]

    def found(self, text: str, salt: str = "") -> int:
        """How many characters are found; their pages must be right."""
        path = self.tables.cache.match(salt, [*map(ord, text), 0])
        for index, page in enumerate(self.store.read(path)):
            assert page.tobytes() == self.page_of(text[: (index + 1) * SIZE], salt)
        return len(path) * SIZE

    def check(self) -> None:
        """Asserts that no block and no lock is lost."""
        self.tables.check(self.running)

    def texts(self) -> set[tuple[str, str]]:
        """Every cached path as (salt, text), each with its pages checked."""
        found = set()
        for salt, node in self.tables.cache.by_recency():
            text = "".join(chr(token) for one in self.tables.cache.path_to(node) for token in one.tokens)
            assert self.found(text, salt) == len(text)
            found.add((salt, text))
        return found

    def archive(self) -> bytes:
        """Everything, youngest first."""
        nodes = self.store.youngest(1 << 30)
        writer = ArchiveWriter(self.store.shape, len(nodes))
        parts, roots, indices = [writer.head], {}, {}
        for salt, node in nodes:
            if node.parent in indices:
                parent = indices[node.parent]
            else:
                if salt not in roots:
                    roots[salt], record = writer.root(salt)
                    parts.append(record)
                parent = roots[salt]
            indices[node], record_parts = writer.block(parent, node.tokens, self.store.read([node])[0].data)
            parts.append(b"".join(record_parts))
        return b"".join(parts)

    def bring(self, data: bytes, *, is_import: bool = False) -> ArchiveReader:
        """Takes an archive in, as a snapshot or as an import."""
        reader = ArchiveReader(self.store.shape)
        incoming = self.store.importing() if is_import else self.store.restoring()
        incoming.take(reader.feed(data))
        reader.close()
        self.check()
        return reader


def random_shelf(seed: int, num_blocks: int = 24) -> Shelf:
    """A shelf after some traffic over two letters and three salts, nothing running."""
    rng = random.Random(zlib.crc32(str(seed).encode()))
    shelf = Shelf(num_blocks)
    for _ in range(rng.randint(1, 30)):
        text = "".join(rng.choice("ab") for _ in range(SIZE * rng.randint(1, 5)))
        shelf.compute(text, rng.choice(["", "one", "two"]))
        shelf.check()
    return shelf
