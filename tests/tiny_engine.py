"""Engines built the way the replica builds them, on tiny checkpoints or on a scripted forward pass."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from native_kernels import find_kernels
from penstock.engine.compute import choose_compute
from penstock.engine.core import EngineCore, ForwardPass
from penstock.engine.memory import MemoryPlan, plan_memory
from penstock.engine.plan import Limits, StepPlan
from penstock.engine.runner import load_runner
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Output, Sequence
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config

VOCAB_SIZE = 32


def plan_for(
    directory: Path, *, block_size: int = 4, num_blocks: int = 256, kernels: str = "torch", **changes: Any
) -> MemoryPlan:
    """The memory plan of a checkpoint on the CPU in float32, with a pool of the given size."""
    settings = EngineSettings(
        model=str(directory),
        block_size=block_size,
        max_sequences=1,
        device="cpu",
        **{"dtype": "float32", "kernels": kernels, **changes},
    )
    spec = DecoderSpec.from_config(read_config(directory))
    memory = plan_memory(spec, settings, choose_compute(spec, settings, find_kernels))
    return dataclasses.replace(memory, num_blocks=num_blocks)


def build_core(
    directory: Path,
    *,
    block_size: int = 4,
    num_blocks: int = 256,
    max_sequences: int = 16,
    max_batch_tokens: int = 64,
    draft_rows: int = 0,
    kernels: str = "torch",
    **changes: Any,
) -> EngineCore:
    """An engine core over a checkpoint, with everything that scheduling depends on in the open."""
    memory = plan_for(directory, block_size=block_size, num_blocks=num_blocks, kernels=kernels, **changes)
    max_model_len = min(memory.max_model_len, num_blocks * block_size)
    limits = Limits(max_sequences, max_batch_tokens, max_model_len, draft_rows)
    runner = load_runner(directory, memory, threads=1)
    vocab_size = DecoderSpec.from_config(read_config(directory)).vocab_size
    return EngineCore(runner, limits, num_blocks, block_size, vocab_size=vocab_size)


def greedy(max_tokens: int, **changes: object) -> SamplingParams:
    """Sampling that takes the likeliest token."""
    return dataclasses.replace(SamplingParams(max_tokens=max_tokens, temperature=0.0), **changes)


def new_tokens(outputs: Iterable[Output]) -> dict[int, list[int]]:
    """Tokens by sequence."""
    tokens: dict[int, list[int]] = {}
    for output in outputs:
        if output.token is not None:
            tokens.setdefault(output.sequence_id, []).append(output.token)
    return tokens


def run_to_end(core: EngineCore, sequences: Iterable[Sequence] = ()) -> list[Output]:
    """Adds `sequences` and steps until nothing is left, checking the pool each time; all outputs."""
    for sequence in sequences:
        core.add(sequence)
    outputs: list[Output] = []
    while core.has_work:
        outputs += core.step()
        core.scheduler.check()
    assert core.stats().num_held_blocks == 0
    return outputs


class CountingForward:
    """A ForwardPass whose likeliest next token is the last one plus one, modulo the vocabulary.

    It keeps the sequence ids of every plan that it ran.
    """

    def __init__(self) -> None:
        self.ran: list[list[int]] = []

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass."""
        self.ran.append([chunk.sequence.id for chunk in plan.chunks])
        following = [(chunk.sequence.tokens[-1] + 1) % VOCAB_SIZE for chunk in plan.sampling_chunks]
        return F.one_hot(torch.tensor(following, dtype=torch.int64), VOCAB_SIZE).float() * 20


class GatedForward(CountingForward):
    """A counting forward pass that says when a step has begun and holds it until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass."""
        self.begun.release()
        self.gate.acquire()
        return super().run(plan)


class FailingForward(CountingForward):
    """A counting forward pass that raises for the plans that `is_bad` picks."""

    def __init__(self, is_bad: Callable[[StepPlan], bool]) -> None:
        super().__init__()
        self.is_bad = is_bad

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass."""
        if self.is_bad(plan):
            raise RuntimeError("scripted failure")
        return super().run(plan)


def scripted_core(
    runner: ForwardPass,
    *,
    max_sequences: int = 8,
    max_batch_tokens: int = 16,
    max_model_len: int = 64,
    num_blocks: int = 64,
    block_size: int = 4,
    **options: Any,
) -> EngineCore:
    """An engine core on a scripted forward pass; `options` are those of the core."""
    limits = Limits(max_sequences, max_batch_tokens, max_model_len)
    return EngineCore(runner, limits, num_blocks, block_size, **options)
