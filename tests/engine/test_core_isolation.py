"""What a failing pass may touch: the sequences whose work raises, nobody beside them, and not the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.base.errors import EngineError
from penstock.engine.core import MAX_FAILED_STEPS, EngineCore, ForwardPass
from penstock.engine.plan import StepPlan
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import FinishReason, Output, Sequence
from tiny_engine import CountingForward, build_core, greedy, new_tokens, run_to_end, scripted_core

ERRORS = [RuntimeError("scripted failure"), MemoryError(), torch.OutOfMemoryError("scripted")]
CULPRIT = 2


class Raising:
    """Another forward pass that raises, before or after its work, for the plans that `is_bad` picks."""

    def __init__(
        self,
        is_bad: Callable[[StepPlan], bool],
        error: Exception = ERRORS[0],
        runner: ForwardPass | None = None,
        *,
        is_late: bool = False,
    ) -> None:
        self.is_bad = is_bad
        self._error = error
        self._runner = runner or CountingForward()
        self._is_late = is_late

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass."""
        if self.is_bad(plan) and not self._is_late:
            raise self._error
        logits = self._runner.run(plan)
        if self.is_bad(plan):
            raise self._error
        return logits


def holds(*culprits: int) -> Callable[[StepPlan], bool]:
    """Picks plans with work of these sequences in them."""
    return lambda plan: any(chunk.sequence.id in culprits for chunk in plan.chunks)


def ends(outputs: list[Output]) -> dict[int, FinishReason]:
    """How each sequence ended."""
    return {output.sequence_id: output.finish for output in outputs if output.finish is not None}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_only_the_sequence_whose_work_raises_fails(error: Exception) -> None:
    """Those in the same step get their tokens, the waiting one its turn; the error says where to look."""
    core = scripted_core(Raising(holds(CULPRIT), error), max_sequences=3)
    outputs = run_to_end(core, [Sequence(number, [3], greedy(2)) for number in (1, 2, 3, 4)])
    assert new_tokens(outputs) == {1: [4, 5], 3: [4, 5], 4: [4, 5]}
    assert ends(outputs) == {1: FinishReason.LENGTH, 2: FinishReason.ERROR} | dict.fromkeys(
        (3, 4), FinishReason.LENGTH
    )
    (failed,) = [output.error for output in outputs if output.error is not None]
    assert isinstance(failed, EngineError)
    assert "log" in failed.message
    assert core.stats().num_failed_steps == 1
    assert core.stats().generated_tokens == 6
    assert core.stats().prompt_tokens == 3


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("fails_at", [0, 30, 45])
def test_the_others_get_the_tokens_of_a_run_without_it(
    checkpoint: Path, fails_at: int, is_late: bool
) -> None:
    """A real model, chunked prompts and drawn tokens; the culprit raises in its first chunk, a later one or
    a decode, before or after the pass has written keys and values.
    """

    def sequences(*numbers: int) -> list[Sequence]:
        sampling = {number: SamplingParams(max_tokens=12, seed=number) for number in numbers}
        return [Sequence(n, [(7 * n + i) % 90 for i in range(5 + 15 * n)], sampling[n]) for n in numbers]

    def is_bad(plan: StepPlan) -> bool:
        return any(
            chunk.sequence.id == CULPRIT and chunk.start + chunk.count > fails_at for chunk in plan.chunks
        )

    expected = new_tokens(run_to_end(build_core(checkpoint, max_batch_tokens=16), sequences(1, 3, 4)))
    core = build_core(checkpoint, max_batch_tokens=16)
    core.runner = Raising(is_bad, runner=core.runner, is_late=is_late)
    outputs = run_to_end(core, sequences(1, 2, 3, 4))
    assert ends(outputs)[CULPRIT] is FinishReason.ERROR
    tokens = new_tokens(outputs)
    assert len(tokens.pop(CULPRIT, [])) == max(0, fails_at - 35 + 1)
    assert tokens == expected


def test_a_failing_sampler_ends_only_its_own_row() -> None:
    """Sampling is work of the request, too."""
    core = scripted_core(CountingForward())
    cannot = SamplingParams(max_tokens=3, top_k=-1)
    outputs = run_to_end(core, [Sequence(1, [3], greedy(3)), Sequence(CULPRIT, [3], cannot)])
    assert new_tokens(outputs) == {1: [4, 5, 6]}
    assert ends(outputs) == {1: FinishReason.LENGTH, CULPRIT: FinishReason.ERROR}


def test_a_step_too_large_for_memory_goes_on_in_parts() -> None:
    """Nobody is to blame, so nobody fails."""
    core = scripted_core(Raising(lambda plan: len(plan.chunks) > 1, ERRORS[2]))
    outputs = run_to_end(core, [Sequence(number, [3], greedy(3)) for number in (1, 2, 3)])
    assert new_tokens(outputs) == {number: [4, 5, 6] for number in (1, 2, 3)}
    assert core.stats().num_failed_steps == 3
    assert not core.is_broken


def test_a_failing_step_in_mid_generation_keeps_the_engine_usable() -> None:
    """Blocks written by the failed step come back and are handed out again, in a pool that was full."""
    core = scripted_core(Raising(lambda plan: plan.chunks[0].start == 5), num_blocks=2)
    first = run_to_end(core, [Sequence(1, [0], greedy(7))])
    assert [output.token for output in first] == [1, 2, 3, 4, 5, None]
    assert first[-1].finish is FinishReason.ERROR
    second = run_to_end(core, [Sequence(2, [0], greedy(5))])
    assert [output.token for output in second] == [1, 2, 3, 4, 5]


def broken_after(core: EngineCore) -> int:
    """Steps after which the engine gives up on itself, with sequences coming in at each."""
    for step in range(10):
        if core.is_broken:
            return step
        core.add(Sequence(10 * step + 1, [3], greedy(2)))
        core.add(Sequence(10 * step + 2, [3], greedy(2)))
        core.step()
        core.scheduler.check()
    return -1


def test_a_device_that_fails_whatever_it_is_asked_is_broken() -> None:
    """After three steps, however many sequences were in each; they all have ended."""
    core = scripted_core(Raising(lambda plan: True))
    assert broken_after(core) == MAX_FAILED_STEPS
    assert core.stats().num_failed_steps == MAX_FAILED_STEPS
    assert not core.has_work


def test_a_request_that_cannot_be_computed_never_breaks_the_engine() -> None:
    """A client that repeats it, with nobody beside it, is told so each time."""
    core = scripted_core(Raising(lambda plan: plan.chunks[0].sequence.tokens[-1] == 3))
    assert broken_after(core) == -1
    assert core.stats().num_failed_steps == 10


def test_what_passes_is_forgotten() -> None:
    """Two failed steps, then one that computes, as often as it may be: that is no broken device."""
    runner = Raising(lambda plan: True)
    core = scripted_core(runner)
    for number in range(9):
        runner.is_bad = (lambda plan: False) if number % 3 == 2 else (lambda plan: True)
        run_to_end(core, [Sequence(number, [3], greedy(2))])
        assert not core.is_broken
