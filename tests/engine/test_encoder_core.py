"""The encoder's step: vectors in order, failures that stay with their request, a device that is broken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.base.errors import DeadlineExceededError, EngineError
from penstock.engine.encoder import Encoder, EncoderInput
from penstock.engine.encoder_core import (
    MAX_FAILED_STEPS,
    EncoderCore,
    EncoderJob,
    EncoderLimits,
    EncoderOutput,
    Texts,
)
from penstock.engine.encoder_queue import Job
from penstock.engine.pooling import Pooling, pool
from tiny_encoders import ENCODERS, SCORERS, read_encoder, states_of, texts, write_encoder

LIMITS = EncoderLimits(max_texts=5, max_batch_tokens=64, max_text_tokens=66, max_requests=9)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A tiny BERT."""
    directory = tmp_path_factory.mktemp("encoder")
    write_encoder(ENCODERS[0], directory)
    return read_encoder(directory)


def job_of(
    given: Sequence[Sequence[int]], pooling: Pooling | None = Pooling.MEAN, deadline: float = math.inf
) -> EncoderJob:
    """A request for these texts."""
    return Job([len(one) for one in given], Texts(list(map(EncoderInput, given)), pooling, 0.0), deadline)


def run(core: EncoderCore) -> list[EncoderOutput]:
    """Steps until nothing is left."""
    outputs = []
    while core.has_work:
        outputs += core.step()
    return outputs


def failing(encoder: Encoder, is_bad: Callable[[Sequence[int]], bool]) -> Encoder:
    """The encoder, raising for batches whose tokens `is_bad` picks."""

    class Failing(Encoder):
        def forward(self, batch: object) -> torch.Tensor:
            if is_bad(batch.tokens.tolist()):
                raise RuntimeError("scripted failure")
            return super().forward(batch)

    with torch.device("meta"):
        bad = Failing(encoder.spec)
    bad.load_state_dict(encoder.state_dict(), assign=True)
    return bad.eval()


@pytest.mark.parametrize("pooling", Pooling)
def test_vectors_are_those_of_the_texts_alone(encoder: Encoder, pooling: Pooling) -> None:
    """In the order of the request, over many batches shared with another request."""
    core = EncoderCore(encoder, LIMITS)
    first, second = texts(17, 66, seed=1), texts(8, 20, seed=2)
    jobs = [job_of(first, pooling), job_of(second, pooling)]
    for job in jobs:
        core.add(job)
    assert {output.job for output in run(core)} == set(jobs)
    for job, given in zip(jobs, (first, second), strict=True):
        for index, tokens in enumerate(given):
            (states,) = states_of(encoder, [EncoderInput(tokens)])
            expected = pool(states, pooling).numpy()
            np.testing.assert_allclose(job.work.vectors[index], expected, atol=1e-6)
    stats = core.stats()
    assert stats.prompt_tokens == sum(map(len, first + second))
    assert stats.num_steps > 17 // 5
    assert stats.num_failed_steps == 0


def test_scores_come_from_the_head(tmp_path: Path) -> None:
    """As vectors of one number."""
    write_encoder(SCORERS[0], tmp_path)
    scorer = read_encoder(tmp_path)
    core = EncoderCore(scorer, LIMITS)
    given = texts(4, 20)
    job = job_of(given, None)
    core.add(job)
    run(core)
    for index, states in enumerate(states_of(scorer, list(map(EncoderInput, given)))):
        with torch.inference_mode():
            expected = scorer.score(states[:1]).numpy()
        np.testing.assert_allclose(job.work.vectors[index], expected, atol=1e-6)


def test_a_text_that_cannot_be_computed_fails_its_request_alone(encoder: Encoder) -> None:
    """The others of its batch are computed; its own other texts are given up."""
    core = EncoderCore(failing(encoder, lambda tokens: 130 in tokens), LIMITS)
    good, bad = job_of([[5, 6], [7]]), job_of([[130, 1], [130, 2], [9]] + [[4]] * 30)
    core.add(bad)
    core.add(good)
    ended = run(core)
    assert len(ended) == 2  # once, though two of its texts cannot be computed
    outputs = {output.job: output.error for output in ended}
    assert isinstance(outputs[bad], EngineError)
    assert outputs[good] is None
    assert len(good.work.vectors) == 2
    assert not core.is_broken
    assert core.stats().num_failed_steps == 1


def test_a_client_that_repeats_what_cannot_be_computed_does_not_end_the_engine(encoder: Encoder) -> None:
    """A probe tells it from a broken device."""
    core = EncoderCore(failing(encoder, lambda tokens: 130 in tokens), LIMITS)
    for _ in range(2 * MAX_FAILED_STEPS):
        core.add(job_of([[130]]))
        (output,) = core.step()
        assert isinstance(output.error, EngineError)
        assert "scripted" not in output.error.message
        assert not core.is_broken


def test_a_device_that_computes_nothing_is_broken(encoder: Encoder) -> None:
    """After three steps, not before."""
    core = EncoderCore(failing(encoder, lambda tokens: True), LIMITS)
    verdicts = []
    for _ in range(MAX_FAILED_STEPS):
        core.add(job_of([[5]]))
        core.step()
        verdicts.append(core.is_broken)
    assert verdicts == [False] * (MAX_FAILED_STEPS - 1) + [True]


def test_a_late_request_ends_with_an_error(encoder: Encoder) -> None:
    """Before its next text; it says how far it came."""
    now = 0.0
    core = EncoderCore(encoder, LIMITS, clock=lambda: now)
    late = job_of([[5]] * 7, deadline=2.0)
    core.add(late)
    assert core.step() == []
    now = 2.0
    (output,) = core.step()
    assert output.job is late
    assert isinstance(output.error, DeadlineExceededError)
    assert "5 of 7" in output.error.message
    assert not core.has_work


def test_a_cancelled_request_is_forgotten(encoder: Encoder) -> None:
    """And may be cancelled again."""
    core = EncoderCore(encoder, LIMITS)
    job = job_of([[5]] * 12)
    core.add(job)
    core.step()
    core.cancel(job)
    core.cancel(job)
    assert not core.has_work
    assert core.step() == []
    assert len(job.work.vectors) == LIMITS.max_texts
