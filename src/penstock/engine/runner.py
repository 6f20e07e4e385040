"""Device memory and the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from penstock.engine.attention.reference import ReferenceAttention
from penstock.engine.batch import build_batch
from penstock.engine.decoder import Decoder
from penstock.engine.memory import MemoryPlan
from penstock.engine.scheduler import StepPlan
from penstock.engine.weights import load_checkpoint


class Runner:
    """A decoder with its KV cache on one device; used by one thread."""

    def __init__(self, decoder: Decoder, memory: MemoryPlan) -> None:
        self.decoder = decoder
        self.memory = memory
        self.attention = ReferenceAttention(
            decoder.spec, memory.num_blocks, memory.block_size, memory.dtype, memory.device
        )

    @staticmethod
    def load(
        directory: Path, memory: MemoryPlan, progress: Callable[[int, int], None] | None = None
    ) -> Runner:
        """Reads a checkpoint onto the planned device. Raises CheckpointError as `load_checkpoint` does."""
        return Runner(load_checkpoint(directory, memory.dtype, memory.device, progress), memory)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Computes the plan into the KV cache; float32 logits (num_sampled, vocab_size) in its order."""
        batch = build_batch(plan, self.memory.block_size, self.memory.device)
        states = self.decoder(batch.tokens, batch.positions, self.attention.bind(batch))
        return self.decoder.logits(states[batch.logit_rows])
