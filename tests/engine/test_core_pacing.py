"""A long prompt beside running streams, on a machine whose steps take a known time by its own clock."""

from __future__ import annotations

import random

from torch import Tensor

from penstock.engine.core import EngineCore
from penstock.engine.plan import StepPlan
from penstock.engine.sequence import Sequence
from tiny_engine import VOCAB_SIZE, CountingForward, greedy, scripted_core

PROMPT = 4000
STREAMS = 4


class TimedForward(CountingForward):
    """A counting forward pass of known cost: weights, rows, attention; a little noise and a rare hiccup."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._rng = random.Random(1)

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass."""
        pairs = sum(chunk.count * (chunk.start + chunk.count) for chunk in plan.chunks)
        seconds = 0.010 + 0.0004 * plan.num_tokens + 5e-8 * pairs
        self.now += seconds * (4 if self._rng.random() < 0.004 else self._rng.uniform(0.95, 1.05))
        return super().run(plan)


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[int(len(values) * 0.99)]


def gaps(core: EngineCore, until_tokens_of: int | None, steps: int) -> list[float]:
    """Seconds between the tokens of stream 0, for so many steps or until that sequence has a token."""
    found, last = [], core.clock()
    for _ in range(steps):
        ids = [output.sequence_id for output in core.step()]
        assert 0 in ids  # decodes are in every step
        found.append(core.clock() - last)
        last = core.clock()
        if until_tokens_of in ids:
            break
    return found


def run(decode_slowdown: float) -> tuple[list[float], list[float]]:
    """Gaps of a stream while it is quiet, and while a long prompt is computed."""
    runner = TimedForward()
    core = scripted_core(
        runner,
        max_batch_tokens=512,
        max_model_len=8192,
        num_blocks=2048,
        block_size=16,
        clock=lambda: runner.now,
        decode_slowdown=decode_slowdown,
    )
    for identity in range(STREAMS):
        core.add(Sequence(identity, [identity] * 50, greedy(8000)))
    core.step()
    quiet = gaps(core, None, steps=300)
    core.add(Sequence(9, [i % VOCAB_SIZE for i in range(PROMPT)], greedy(1)))
    return quiet, gaps(core, until_tokens_of=9, steps=4000)


def test_the_gaps_of_a_stream_stay_below_three_times_its_quiet_ones() -> None:
    """At the 99th percentile, over the whole prompt, its first chunks included."""
    quiet, busy = run(decode_slowdown=2.5)
    assert p99(busy) <= 3 * p99(quiet)
    assert sum(busy) <= 10  # seconds; 2.8 if the prompt were alone


def test_without_pacing_they_do_not() -> None:
    """So that the bound above says something."""
    quiet, busy = run(decode_slowdown=0.0)
    assert p99(busy) > 10 * p99(quiet)
