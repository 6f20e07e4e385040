"""The engine step: how sequences end."""

from __future__ import annotations

import pytest
from torch import Tensor

from penstock.base.errors import DeadlineExceededError, EngineError, KVCapacityError
from penstock.engine.plan import StepPlan
from penstock.engine.sequence import FinishReason, Sequence
from tiny_engine import (
    VOCAB_SIZE,
    CountingForward,
    greedy,
    run_to_end,
    scripted_core,
)


def test_a_stop_token_ends_the_sequence_and_is_its_last_token() -> None:
    """The caller decides whether to show it, so it must see it."""
    core = scripted_core(CountingForward())
    outputs = run_to_end(core, [Sequence(1, [3, 4], greedy(20, stop_token_ids=frozenset({7, 30})))])
    assert [output.token for output in outputs] == [5, 6, 7]
    assert [output.finish for output in outputs] == [None, None, FinishReason.STOP]


def test_a_stop_token_may_be_the_very_first_one() -> None:
    """A model may have nothing to say."""
    core = scripted_core(CountingForward())
    (output,) = run_to_end(core, [Sequence(1, [6], greedy(20, stop_token_ids=frozenset({7})))])
    assert (output.token, output.finish) == (7, FinishReason.STOP)


def test_a_stop_token_in_the_prompt_ends_nothing() -> None:
    """Chat templates put end tokens between the turns."""
    core = scripted_core(CountingForward())
    outputs = run_to_end(core, [Sequence(1, [7, 7, 4], greedy(3, stop_token_ids=frozenset({7})))])
    assert [output.token for output in outputs] == [5, 6, 7]


def test_max_tokens_ends_the_sequence_with_length() -> None:
    """Exactly that many tokens, not one more."""
    outputs = run_to_end(scripted_core(CountingForward()), [Sequence(1, [3], greedy(4))])
    assert [output.token for output in outputs] == [4, 5, 6, 7]
    assert outputs[-1].finish is FinishReason.LENGTH


def test_a_stop_token_on_the_last_allowed_place_counts_as_stop() -> None:
    """The answer is complete: `length` would tell the client to ask for more."""
    outputs = run_to_end(
        scripted_core(CountingForward()), [Sequence(1, [3], greedy(4, stop_token_ids=frozenset({7})))]
    )
    assert outputs[-1].finish is FinishReason.STOP


@pytest.mark.parametrize("prompt_length", [1, 9, 10, 11])
def test_the_context_ends_the_sequence_with_length(prompt_length: int) -> None:
    """Prompt and answer together fill the context exactly."""
    core = scripted_core(CountingForward(), max_model_len=12)
    outputs = run_to_end(core, [Sequence(1, [0] * prompt_length, greedy(1000))])
    assert len(outputs) == 12 - prompt_length
    assert outputs[-1].finish is FinishReason.LENGTH


def test_a_context_as_large_as_the_pool_is_used_up_without_an_error() -> None:
    """The memory plan caps the context at the pool, so the last block must be usable to its last slot."""
    core = scripted_core(CountingForward(), max_model_len=12, num_blocks=3, block_size=4)
    outputs = run_to_end(core, [Sequence(1, [0] * 5, greedy(1000))])
    assert len(outputs) == 7
    assert outputs[-1].finish is FinishReason.LENGTH
    assert core.stats().num_preemptions == 0


def test_cancelling_gives_one_terminal_output_and_the_blocks() -> None:
    """In the queue as well as in the running set; the second time there is nothing to end."""
    core = scripted_core(CountingForward(), max_sequences=1)
    core.add(Sequence(1, [3], greedy(20)))
    core.add(Sequence(2, [3], greedy(20)))
    core.step()
    for identity in (1, 2):
        output = core.cancel(identity)
        assert output is not None
        assert (output.sequence_id, output.finish, output.token) == (identity, FinishReason.CANCELLED, None)
        assert core.cancel(identity) is None
    assert not core.has_work
    assert core.stats().num_held_blocks == 0


def test_a_sequence_that_outgrows_the_pool_fails_alone() -> None:
    """Without a context cap a decode can exceed the pool: it is told so, the others finish."""
    core = scripted_core(CountingForward(), num_blocks=4, block_size=4, max_model_len=64)
    outputs = run_to_end(core, [Sequence(1, [0] * 6, greedy(40)), Sequence(2, [0] * 2, greedy(4))])
    ended = {output.sequence_id: output for output in outputs if output.finish}
    assert isinstance(ended[1].error, KVCapacityError)
    assert "17 tokens" in ended[1].error.message
    assert "16" in ended[1].error.message
    assert ended[2].finish is FinishReason.LENGTH


def test_counters_say_what_was_done() -> None:
    """Metrics are made of these numbers."""
    core = scripted_core(CountingForward(), max_batch_tokens=8)
    run_to_end(core, [Sequence(1, [0] * 20, greedy(3)), Sequence(2, [0] * 5, greedy(1))])
    stats = core.stats()
    assert stats.prompt_tokens == 21  # four of the second's were the first's
    assert (stats.prefix_queried_tokens, stats.prefix_hit_tokens) == (25, 4)
    assert (stats.num_cached_blocks, stats.num_free_blocks, stats.num_held_blocks) == (5, 59, 0)
    assert stats.generated_tokens == 4
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_failed_steps == 0
    assert stats.num_steps == len(core.runner.ran)
    assert stats.step_seconds.sum > 0


def test_a_sequence_past_its_deadline_ends_between_two_steps() -> None:
    """By the core's own clock; the tokens that it has got stay its own."""
    now = [100.0]
    core = scripted_core(CountingForward(), clock=lambda: now[0])
    core.add(Sequence(1, [3], greedy(40), arrival=100.0, deadline=102.0))
    core.add(Sequence(2, [3], greedy(4), arrival=100.0))
    assert [output.token for output in core.step()] == [4, 4]
    now[0] = 102.0
    late, token = core.step()
    assert (late.sequence_id, late.token, late.finish) == (1, None, FinishReason.ERROR)
    assert isinstance(late.error, DeadlineExceededError)
    assert (token.sequence_id, token.token) == (2, 5)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_blocks_that_are_missing_when_nobody_is_there_come_back(
    is_cancelled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of ours must not eat the pool up; it is logged, and the cache begins anew."""
    core = scripted_core(CountingForward())
    run_to_end(core, [Sequence(1, [0] * 9, greedy(2))])
    assert not caplog.records
    core.scheduler.pool.allocate(3)  # and never given back
    core.add(Sequence(2, [0] * 9, greedy(2)))
    if is_cancelled:
        core.cancel(2)
    else:
        while core.has_work:
            core.step()
    assert ["KV blocks lost" in record.message for record in caplog.records] == [True]
    stats = core.stats()
    assert (stats.num_free_blocks, stats.num_cached_blocks) == (64, 0)
    outputs = run_to_end(core, [Sequence(3, [0] * 9, greedy(2))])
    assert [output.token for output in outputs] == [1, 2]


def test_tokens_wrap_at_the_vocabulary_of_the_model() -> None:
    """The engine knows ids only; whether the tokenizer has them is not its matter."""
    outputs = run_to_end(scripted_core(CountingForward()), [Sequence(1, [VOCAB_SIZE - 2], greedy(3))])
    assert [output.token for output in outputs] == [VOCAB_SIZE - 1, 0, 1]


def test_logits_without_a_distribution_end_only_their_own_sequence() -> None:
    """Overflow in one row must not be served as text, nor cost the neighbours their answers."""

    class Overflowing(CountingForward):
        def run(self, plan: StepPlan) -> Tensor:
            logits = super().run(plan)
            for row, chunk in enumerate(plan.sampling_chunks):
                if chunk.sequence.id == 2:
                    logits[row] = float("nan")
            return logits

    core = scripted_core(Overflowing())
    outputs = run_to_end(core, [Sequence(1, [3], greedy(3)), Sequence(2, [3], greedy(3))])
    by_id = {i: [output for output in outputs if output.sequence_id == i] for i in (1, 2)}
    assert [output.token for output in by_id[1]] == [4, 5, 6]
    (failed,) = by_id[2]
    assert (failed.token, failed.finish) == (None, FinishReason.ERROR)
    assert isinstance(failed.error, EngineError)
    core.scheduler.check()
    assert core.stats().num_held_blocks == 0
    assert core.stats().num_cached_blocks == 0  # nobody inherits what may have spoilt the logits
