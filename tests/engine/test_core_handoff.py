"""A sequence that goes on in another engine draws what it would have drawn in the first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from company import NEW_TOKENS, SAMPLING
from native_kernels import EITHER
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import FinishReason, Sequence
from tiny_engine import build_core, new_tokens, run_to_end

PROMPT = [7, 3, 99, 12, 7, 3, 99, 12, 7, 3]
KINDS = [
    *SAMPLING,
    SamplingParams(
        max_tokens=NEW_TOKENS,
        seed=8,
        frequency_penalty=0.6,
        presence_penalty=0.3,
        repetition_penalty=1.2,
        logit_bias=((5, 2.0),),
        min_tokens=15,
        stop_token_ids=frozenset({5}),
    ),
]


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("sampling", KINDS, ids=range(len(KINDS)))
def test_the_continuation_equals_the_uninterrupted_answer(
    checkpoint: Path, kernels: str, sampling: SamplingParams
) -> None:
    """Cut at every token; the second engine has other chunks, drafts, and a cache that knows nothing."""
    whole = build_core(checkpoint, kernels=kernels, block_size=16)
    (expected,) = new_tokens(run_to_end(whole, [Sequence(1, list(PROMPT), sampling)])).values()
    for cut in range(1, len(expected)):
        first = build_core(checkpoint, kernels=kernels, block_size=16)
        first.add(Sequence(1, list(PROMPT), sampling))
        for _ in range(cut):
            first.step()
        moved = first.move(1)
        assert moved is not None
        assert not first.has_work
        assert first.move(1) is None
        assert moved.answer == expected[:cut]
        second = build_core(
            checkpoint, kernels=kernels, block_size=16, max_batch_tokens=5, draft_rows=12, max_sequences=5
        )
        resumed = Sequence(2, list(moved.tokens), sampling, num_resumed=moved.num_generated)
        outputs = run_to_end(second, [resumed])
        assert [*moved.answer, *new_tokens(outputs)[2]] == expected
        assert outputs[-1].finish in (FinishReason.LENGTH, FinishReason.STOP)


def test_a_resumed_sequence_counts_as_it_did(checkpoint: Path) -> None:
    """Its limit is that of the whole answer, its prompt that of the request."""
    core = build_core(checkpoint)
    sampling = dataclasses.replace(SAMPLING[0], max_tokens=6)
    sequence = Sequence(1, [*PROMPT, 4, 5], sampling, num_resumed=2)
    assert (sequence.num_prompt_tokens, sequence.num_generated, sequence.answer) == (10, 2, [4, 5])
    assert len(new_tokens(run_to_end(core, [sequence]))[1]) == 4
