"""Pacing against synthetic machines: steps stay within their bound, and prefill gets on."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median

import pytest

from penstock.engine.pacing import FIRST_CHUNK, MIN_CHUNK, TILE, WINDOW, Pacer

SLOWDOWN = 2.5
PROMPT = 4000
# Seconds of a step by (decodes, prefill tokens, context of the prompt so far).
Machine = Callable[[int, int, int], float]


def linear(decodes: int, tokens: int, _context: int) -> float:
    """Weights are read once, every row costs the same."""
    return 0.010 + 0.0005 * decodes + 0.0002 * tokens


def growing(decodes: int, tokens: int, context: int) -> float:
    """Attention over 4000 tokens doubles what a token costs."""
    return linear(decodes, tokens, context) + 0.0002 * tokens * context / PROMPT


def with_a_fixed_part(decodes: int, tokens: int, context: int) -> float:
    """Another kernel for more than a few rows: a mixed step costs something whatever its size."""
    return growing(decodes, tokens, context) + 0.005 * (tokens > 0)


def in_tiles(decodes: int, tokens: int, _context: int) -> float:
    """A matrix kernel that rounds rows up to 32."""
    return 0.010 + 0.005 * -(-(decodes + tokens) // 32)


def quiet(pacer: Pacer, machine: Machine, decodes: int, steps: int = WINDOW) -> float:
    """Decodes alone, learned; the seconds of a step."""
    for _ in range(steps):
        pacer.observe(decodes, 0, machine(decodes, 0, 0))
    return machine(decodes, 0, 0)


def prefill(pacer: Pacer, machine: Machine, decodes: int) -> list[tuple[int, float]]:
    """A long prompt beside these decodes: (tokens, seconds) of each step."""
    steps, done = [], 0
    while done < PROMPT:
        tokens = min(pacer.prefill_limit(decodes), PROMPT - done)
        seconds = machine(decodes, tokens, done)
        pacer.observe(decodes, tokens, seconds)
        steps.append((tokens, seconds))
        done += tokens
    return steps


@pytest.mark.parametrize("decodes", [1, 4, 16])
@pytest.mark.parametrize("machine", [linear, growing, with_a_fixed_part])
def test_steps_stay_within_the_bound(machine: Machine, decodes: int) -> None:
    """All but the first, which finds out what a token costs; and most of what is allowed is used."""
    pacer = Pacer(SLOWDOWN)
    bound = SLOWDOWN * quiet(pacer, machine, decodes)
    steps = prefill(pacer, machine, decodes)
    assert sorted(seconds for _, seconds in steps)[int(len(steps) * 0.99) - 1] <= bound * 1.05
    assert max(seconds for _, seconds in steps) <= bound * 1.35
    assert median(seconds for _, seconds in steps) >= bound * 0.65
    assert all(tokens % TILE == 0 or tokens < TILE for tokens, _ in steps[:-1])


def test_a_staircase_is_overshot_by_one_stair_at_most() -> None:
    """Costs that jump cannot be met exactly; two chunks of about the right size take turns."""
    pacer = Pacer(SLOWDOWN)
    bound = SLOWDOWN * quiet(pacer, in_tiles, 4)
    assert max(seconds for _, seconds in prefill(pacer, in_tiles, 4)) <= bound + 0.005


def test_disturbed_steps_change_nothing_for_long() -> None:
    """One step in ten takes eight times as long, decodes and prefill alike; the other nine keep the bound."""
    rng = random.Random(3)

    def noisy(decodes: int, tokens: int, context: int) -> float:
        return growing(decodes, tokens, context) * (8 if rng.random() < 0.1 else rng.uniform(0.95, 1.05))

    pacer = Pacer(SLOWDOWN)
    quiet(pacer, noisy, 4, steps=50)
    steps = prefill(pacer, noisy, 4)
    bound = SLOWDOWN * growing(4, 0, 0)
    assert sorted(seconds for _, seconds in steps)[int(len(steps) * 0.85)] <= bound * 1.15
    assert sum(tokens for tokens, _ in steps) / len(steps) >= 50  # of about 55 to 80 on a quiet machine


def test_before_anything_is_known_chunks_are_small() -> None:
    """Small enough not to hurt, large enough to learn from."""
    pacer = Pacer(SLOWDOWN)
    assert pacer.prefill_limit(4) == FIRST_CHUNK
    pacer.observe(4, 0, 0.01)
    assert pacer.prefill_limit(4) == FIRST_CHUNK


def test_prompts_get_on_however_dear_they_are() -> None:
    """A machine on which a token costs as much as a decode step: the least chunk, not none."""
    pacer = Pacer(SLOWDOWN)
    for _ in range(WINDOW):
        pacer.observe(1, 0, 0.001)
        pacer.observe(1, MIN_CHUNK, 0.001 + 0.001 * MIN_CHUNK)
    assert pacer.prefill_limit(1) == MIN_CHUNK


def test_prefill_that_seems_free_is_not_trusted() -> None:
    """The decodes were measured over long texts, which have ended: their old time is all of the step's."""
    pacer = Pacer(SLOWDOWN)
    quiet(pacer, lambda *_: 0.100, 4)
    for _ in range(WINDOW):
        pacer.observe(4, 32, 0.020)
    assert pacer.prefill_limit(4) <= 32 * (SLOWDOWN - 1) * 0.100 / (0.25 * 0.020)


def test_a_prompt_computed_alone_is_the_first_guess() -> None:
    """So that the first chunk beside decodes is about right."""
    pacer = Pacer(SLOWDOWN)
    quiet(pacer, linear, 1)
    pacer.observe(0, 512, linear(0, 512, 0))
    first = pacer.prefill_limit(1)
    assert linear(1, first, 0) <= SLOWDOWN * linear(1, 0, 0)
    assert first > FIRST_CHUNK


def test_an_unknown_number_of_decodes_is_taken_for_the_nearest_fewer() -> None:
    """Rather too little time than too much; below all that is known, by their share."""
    pacer = Pacer(SLOWDOWN)
    quiet(pacer, lambda *_: 0.010, 4)
    quiet(pacer, lambda *_: 0.016, 8)
    assert pacer.decode_s(4) == 0.010
    assert pacer.decode_s(7) == 0.010
    assert pacer.decode_s(64) == 0.016
    assert pacer.decode_s(2) == pytest.approx(0.005)
    assert Pacer(SLOWDOWN).decode_s(2) is None


def test_what_is_measured_grows_old_within_a_few_steps() -> None:
    """Decodes whose texts have grown: three more steps and the new cost counts."""
    pacer = Pacer(SLOWDOWN)
    quiet(pacer, lambda *_: 0.010, 4)
    quiet(pacer, lambda *_: 0.030, 4, steps=WINDOW // 2 + 1)
    assert pacer.decode_s(4) == 0.030


def test_a_clock_that_stands_still_does_no_harm() -> None:
    """Coarse clocks measure no time for a short step."""
    pacer = Pacer(SLOWDOWN)
    pacer.observe(1, 0, 0.0)
    pacer.observe(1, 32, 0.0)
    assert pacer.prefill_limit(1) >= MIN_CHUNK
