"""Log-probabilities of answers and of prompts against transformers, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from native_kernels import EITHER
from penstock.engine.prompt_logprobs import SLICE, PromptLogprobs
from penstock.engine.sequence import Sequence
from tiny_checkpoints import CASES
from tiny_engine import build_core, greedy, run_to_end

TOLERANCE = 1e-4
TOP = 4


def oracle(model: Any, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities (len(tokens), vocab_size) after each token."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return found


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("name", [case.name for case in CASES if "window" not in case.name][::3])
def test_log_probabilities_equal_transformers(name: str, kernels: str, written: Callable[[str], Any]) -> None:
    """Of every token of prompt and answer and of its likeliest alternatives; the prompt in odd chunks."""
    directory, model = written(name)
    vocab_size = model.config.vocab_size
    prompt = torch.randint(vocab_size, (61,), generator=torch.Generator().manual_seed(2)).tolist()
    readout = PromptLogprobs(prompt, TOP)
    core = build_core(directory, kernels=kernels, block_size=16, max_batch_tokens=23)
    sequence = Sequence(1, list(prompt), greedy(12, logprobs=TOP), readout=readout)
    outputs = run_to_end(core, [sequence])
    expected = oracle(model, sequence.tokens)
    answer = [(output.token, output.logprobs) for output in outputs]
    assert len(answer) == 12
    said = [*zip(prompt[1:], readout.of_tokens[1:], strict=True), *answer]
    assert readout.of_tokens[0] is None
    for position, (token, logprobs) in enumerate(said):
        row = expected[position]
        assert logprobs.token == pytest.approx(row[token].item(), abs=TOLERANCE)
        assert [found for _, found in logprobs.top] == pytest.approx(
            row.topk(TOP).values.tolist(), abs=TOLERANCE
        )
        assert [row[one].item() for one, _ in logprobs.top] == pytest.approx(
            [found for _, found in logprobs.top], abs=TOLERANCE
        )


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("max_batch_tokens", [1, 7, 64, 512])
def test_chunks_and_slices_do_not_change_them(
    kernels: str, max_batch_tokens: int, written: Callable[[str], Any]
) -> None:
    """More positions than a slice of the head has."""
    directory, model = written("qwen2-tied")
    prompt = torch.randint(100, (3 * SLICE + 5,), generator=torch.Generator().manual_seed(3)).tolist()
    core = build_core(
        directory, kernels=kernels, block_size=16, max_batch_tokens=max_batch_tokens, max_sequences=1
    )
    readout = PromptLogprobs(prompt, 1)
    run_to_end(core, [Sequence(1, list(prompt), greedy(0), readout=readout)])
    expected = oracle(model, prompt)
    found = [logprobs.token for logprobs in readout.of_tokens[1:]]
    rows = expected[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
    assert found == pytest.approx(rows.tolist(), abs=TOLERANCE)


def test_the_prefix_cache_is_passed_by_until_all_is_read(written: Callable[[str], Any]) -> None:
    """A prompt that is cached is computed again for its log-probabilities, and shared again afterwards."""
    directory, _ = written("qwen2-tied")
    prompt = list(range(3, 60))
    core = build_core(directory, block_size=4)
    plain = Sequence(1, list(prompt), greedy(2))
    run_to_end(core, [plain])
    first, second = PromptLogprobs(prompt, 2), PromptLogprobs(prompt, 2)
    asked = Sequence(2, list(prompt), greedy(2), readout=first)
    run_to_end(core, [asked])
    assert asked.num_cached_tokens == 0
    again = Sequence(3, list(prompt), greedy(2), readout=second)
    run_to_end(core, [again])
    assert first.of_tokens == second.of_tokens
    unread = Sequence(4, list(prompt), greedy(2))
    run_to_end(core, [unread])
    assert unread.num_cached_tokens == 56


@pytest.mark.parametrize("seed", range(3))
def test_preemption_reads_every_position_once(seed: int, written: Callable[[str], Any]) -> None:
    """Thrown out in the middle of its prompt, a sequence goes on reading where it was."""
    directory, model = written("qwen2-tied")
    rng = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(100, (30 + i,), generator=rng).tolist() for i in range(4)]
    readouts = [PromptLogprobs(prompt, 1) for prompt in prompts]
    core = build_core(directory, block_size=4, num_blocks=24, max_batch_tokens=16)
    sequences = [
        Sequence(i, list(prompt), greedy(25), readout=readout)
        for i, (prompt, readout) in enumerate(zip(prompts, readouts, strict=True))
    ]
    run_to_end(core, sequences)
    assert core.stats().num_preemptions > 0
    for prompt, readout in zip(prompts, readouts, strict=True):
        expected = oracle(model, prompt)
        rows = expected[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])].tolist()
        assert [one.token for one in readout.of_tokens[1:]] == pytest.approx(rows, abs=TOLERANCE)
