"""Worker: llama.cpp through its C API, Q8_0, one batch per step as its own server does."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import llama_cpp
import numpy as np

from peers.measuring import Stepping, handlers
from peers.protocol import memory, serve

MAX_SEQUENCES = 16
CONTEXT = 1024  # tokens of each sequence: the longest workload has 513
BATCH = 2048
UNIT_BATCH = 512  # the default


_WARNING = 3  # llama.cpp's level; what is below it is written at every graph


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: object) -> None:
    if level >= _WARNING:
        sys.stderr.write(text.decode(errors="replace"))


@dataclass(slots=True)
class _Slot:
    place: int
    pending: list[int]
    position: int
    left: int


class Context:
    """See Stepped. A step is one llama_decode: all that is pending of every sequence, up to a batch."""

    def __init__(self, context: Any, vocab_size: int) -> None:
        self._context = context
        self._vocab_size = vocab_size
        self._memory = llama_cpp.llama_get_memory(context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._slots: dict[int, _Slot] = {}

    def add(self, key: int, prompt: list[int], max_tokens: int) -> None:
        """See Stepped."""
        place = min(set(range(MAX_SEQUENCES)) - {slot.place for slot in self._slots.values()})
        llama_cpp.llama_memory_seq_rm(self._memory, place, -1, -1)
        self._slots[key] = _Slot(place, list(prompt), 0, max_tokens)

    def cancel(self, key: int) -> None:
        """See Stepped."""
        del self._slots[key]

    def step(self) -> dict[int, int]:
        """See Stepped."""
        rows = self._fill()
        status = llama_cpp.llama_decode(self._context, self._batch)
        assert status == 0, f"llama_decode: {status}"
        found = {}
        for key, row in rows.items():
            logits = llama_cpp.llama_get_logits_ith(self._context, row)
            token = int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
            found[key] = token
            slot = self._slots[key]
            slot.pending = [token]
            slot.left -= 1
            if not slot.left:
                del self._slots[key]
        return found

    def _fill(self) -> dict[int, int]:
        """Puts pending tokens into the batch; the rows that give a token, by key."""
        batch, row = self._batch, 0
        rows = {}
        for key, slot in self._slots.items():
            count = min(len(slot.pending), BATCH - row)
            for token in slot.pending[:count]:
                batch.token[row] = token
                batch.pos[row] = slot.position
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = slot.place
                batch.logits[row] = 0
                slot.position += 1
                row += 1
            del slot.pending[:count]
            if count and not slot.pending:
                batch.logits[row - 1] = 1
                rows[key] = row - 1
        batch.n_tokens = row
        return rows


def load(model: str, threads: int) -> dict[str, Any]:
    """Loads the GGUF file and adds the measuring handlers."""
    llama_cpp.llama_log_set(_log, None)
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
    assert loaded, f"llama.cpp cannot load {model}"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = MAX_SEQUENCES * CONTEXT
    params.n_batch, params.n_ubatch, params.n_seq_max = BATCH, UNIT_BATCH, MAX_SEQUENCES
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(loaded, params)
    assert context, "llama.cpp cannot make a context"
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
    HANDLERS.update(handlers(Stepping(Context(context, vocab_size))))
    info = llama_cpp.llama_print_system_info().decode()
    versions = {"llama-cpp-python": version("llama-cpp-python"), "llama.cpp built with": info.strip()}
    return {"versions": versions, "memory": memory()}


HANDLERS: dict[str, Any] = {"load": load}

if __name__ == "__main__":
    serve(HANDLERS)
