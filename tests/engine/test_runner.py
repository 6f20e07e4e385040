"""The paged forward pass against transformers, position by position."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from native_kernels import EITHER
from penstock.engine.batch import build_batch
from penstock.engine.native.runner import NativeRunner
from penstock.engine.plan import Chunk, StepPlan
from penstock.engine.runner import TorchRunner, load_runner
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from tiny_checkpoints import CASES, Case
from tiny_engine import plan_for

Runner = TorchRunner | NativeRunner
LONGEST = 256  # the trained length of every case: also where `dynamic` must still be plain
NUM_BLOCKS = 200
TOLERANCE = 1e-4


def sequence_with(identity: int, length: int, vocab_size: int, blocks: list[int]) -> Sequence:
    """A sequence of random tokens in the given blocks."""
    generator = torch.Generator().manual_seed(identity)
    tokens = torch.randint(vocab_size, (length,), generator=generator).tolist()
    return Sequence(identity, tokens, SamplingParams(max_tokens=1), block_table=blocks)


def two_sequences(vocab_size: int) -> list[Sequence]:
    """One at the trained length and a shorter one, their blocks interleaved at random."""
    blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(3)).tolist()
    return [
        sequence_with(1, LONGEST, vocab_size, blocks[::2]),
        sequence_with(2, 85, vocab_size, blocks[1::2]),
    ]


def runner_for(
    directory: Path, kernels: str = "torch", num_blocks: int = NUM_BLOCKS, **changes: Any
) -> Runner:
    """A checkpoint in float32 and blocks of 4, of 16 on the native kernels."""
    block_size = 4 if kernels == "torch" else 16
    memory = plan_for(
        directory, num_blocks=num_blocks, block_size=block_size, **{"kernels": kernels, **changes}
    )
    return load_runner(directory, memory, threads=2)


def vocab_size_of(runner: Runner) -> int:
    """Of the runner's model."""
    return (runner.decoder if isinstance(runner, TorchRunner) else runner).spec.vocab_size


def logits_in_chunks(runner: Runner, sequences: list[Sequence], count: int) -> dict[int, Tensor]:
    """Logits at every position, the sequences side by side in chunks of `count` tokens."""
    rows: dict[int, list[Tensor]] = {sequence.id: [] for sequence in sequences}
    for start in range(0, max(len(sequence.tokens) for sequence in sequences), count):
        chunks = [
            Chunk(sequence, start, min(count, len(sequence.tokens) - start))
            for sequence in sequences
            if start < len(sequence.tokens)
        ]
        batch = build_batch(StepPlan(tuple(chunks)), runner.memory.block_size)
        everywhere = np.arange(len(batch.tokens), dtype=np.int32)
        logits = runner.compute(dataclasses.replace(batch, logit_rows=everywhere)).clone()
        sizes = [chunk.count for chunk in chunks]
        for chunk, part in zip(chunks, logits.split(sizes), strict=True):
            rows[chunk.sequence.id].append(part)
    return {identity: torch.cat(parts) for identity, parts in rows.items()}


@torch.inference_mode()
def oracle_logits(model: Any, tokens: list[int]) -> Tensor:
    """transformers' logits at every position."""
    logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_paged_logits_equal_transformers_at_every_position(
    case: Case, kernels: str, written: Callable[[str], Any]
) -> None:
    """In chunks of 23, across scattered blocks, up to the trained length."""
    directory, oracle = written(case.name)
    runner = runner_for(directory, kernels)
    sequences = two_sequences(vocab_size_of(runner))
    ours = logits_in_chunks(runner, sequences, 23)
    for sequence in sequences:
        error = (ours[sequence.id] - oracle_logits(oracle, sequence.tokens)).abs().max().item()
        assert error < TOLERANCE


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("count", [1, 64, LONGEST])
@pytest.mark.parametrize("name", ["qwen2-window", "qwen3-yarn-rope"])
def test_the_chunk_size_does_not_change_logits(
    name: str, count: int, kernels: str, written: Callable[[str], Any]
) -> None:
    """One token at a time is decoding, all at once is plain prefill: both must be the same function."""
    directory, oracle = written(name)
    runner = runner_for(directory, kernels)
    sequences = two_sequences(vocab_size_of(runner))[1:]
    ours = logits_in_chunks(runner, sequences, count)
    torch.testing.assert_close(ours[2], oracle_logits(oracle, sequences[0].tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kernels", EITHER)
def test_a_run_gives_one_row_per_sampling_chunk_in_plan_order(checkpoint: Path, kernels: str) -> None:
    """A chunk that ends inside its prompt gives no row."""
    runner = runner_for(checkpoint, kernels)
    vocab_size = vocab_size_of(runner)
    long, short = two_sequences(vocab_size)
    logits = runner.run(StepPlan((Chunk(long, 0, 10), Chunk(short, 0, 85))))
    assert logits.shape == (1, vocab_size)
    assert logits.dtype == torch.float32
    assert StepPlan((Chunk(long, 0, 10),)).sampling_chunks == []
    assert runner.run(StepPlan((Chunk(long, 0, 10),))).shape == (0, vocab_size)


@pytest.mark.parametrize("kernels", EITHER)
def test_what_a_block_held_before_is_not_seen(checkpoint: Path, kernels: str) -> None:
    """A block comes back from the pool with its last owner's keys in it."""
    runner = runner_for(checkpoint, kernels, num_blocks=8)
    vocab_size = vocab_size_of(runner)
    fresh = runner.run(StepPlan((Chunk(sequence_with(5, 13, vocab_size, [0, 1, 2, 3]), 0, 13),))).clone()
    runner.run(StepPlan((Chunk(sequence_with(6, 32, vocab_size, [3, 1, 0, 2, 4, 5, 6, 7]), 0, 32),)))
    reused = runner.run(StepPlan((Chunk(sequence_with(5, 13, vocab_size, [7, 0, 3, 5]), 0, 13),)))
    assert torch.equal(fresh, reused)


# How far the distribution may move, as a divergence in nats at any position.
CLOSE = {"bfloat16": 0.02, "int8": 0.02, "int4": 0.5}


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("weights", CLOSE)
@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "qwen2-window", "qwen2-tied"])
def test_coarser_weights_stay_close_to_float32(
    name: str, weights: str, kernels: str, written: Callable[[str], Any]
) -> None:
    """Everything fits together and the distribution moves little."""
    directory, oracle = written(name)
    changes = {"dtype": "bfloat16"} if weights == "bfloat16" else {"quantize": weights}
    runner = runner_for(directory, kernels, **changes)
    assert runner.memory.compute.weight_format == weights
    sequences = two_sequences(vocab_size_of(runner))[1:]
    ours = logits_in_chunks(runner, sequences, 23)[2].log_softmax(-1)
    exact = oracle_logits(oracle, sequences[0].tokens).log_softmax(-1)
    divergence = (exact.exp() * (exact - ours)).sum(-1)
    assert divergence.max().item() < CLOSE[weights]
