"""Worker: openvino-genai's continuous batching over int8 weights, without its prefix cache."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import openvino
import openvino_genai

from peers.measuring import Stepping, handlers
from peers.protocol import memory, serve

CACHE_GB = 1
MAX_BATCH_TOKENS = 512  # twice the default, so that a prompt of 512 is one step


class Pipeline:
    """See Stepped."""

    def __init__(self, pipeline: openvino_genai.ContinuousBatchingPipeline) -> None:
        self._pipeline = pipeline
        self._handles: dict[int, Any] = {}

    def add(self, key: int, prompt: list[int], max_tokens: int) -> None:
        """See Stepped."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.set_eos_token_id(0)  # there must be one
        config.ignore_eos = True
        config.do_sample = False
        tokens = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._handles[key] = self._pipeline.add_request(key, tokens, config)

    def step(self) -> dict[int, int]:
        """See Stepped."""
        self._pipeline.step()
        found: dict[int, int] = {}
        for key, handle in list(self._handles.items()):
            while handle.can_read():
                [output] = handle.read().values()
                assert key not in found
                [found[key]] = output.generated_ids
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                del self._handles[key]
        return found

    def cancel(self, key: int) -> None:
        """See Stepped."""
        self._handles.pop(key).cancel()
        while not self._handles and self._pipeline.has_non_finished_requests():
            self._pipeline.step()  # what was cancelled is dropped in a step


def load(model: str, threads: int) -> dict[str, Any]:
    """Loads the exported model and adds the measuring handlers."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_batched_tokens = MAX_BATCH_TOKENS
    scheduler.max_num_seqs = 64
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )
    HANDLERS.update(handlers(Stepping(Pipeline(pipeline))))
    return {"versions": {"openvino-genai": version("openvino-genai")}, "memory": memory()}


HANDLERS: dict[str, Any] = {"load": load}

if __name__ == "__main__":
    serve(HANDLERS)
