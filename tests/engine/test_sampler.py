"""Sampling: exact supports, right frequencies, and draws that depend on the seed and position alone."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from native_kernels import EITHER, find_kernels, needs_kernels
from penstock.engine.native.sampler import NativeSampler
from penstock.engine.sampler import Sampler, uniform
from penstock.engine.sampler import sample as torch_sample
from penstock.engine.sampling import SamplingParams

PLAIN = SamplingParams(max_tokens=1)
FILTERS = [
    PLAIN,
    replace(PLAIN, temperature=0.5),
    replace(PLAIN, temperature=2.0),
    replace(PLAIN, top_k=1),
    replace(PLAIN, top_k=5),
    replace(PLAIN, top_k=500),
    replace(PLAIN, top_p=0.5),
    replace(PLAIN, top_p=0.9),
    replace(PLAIN, top_p=0.999),
    replace(PLAIN, min_p=0.02),
    replace(PLAIN, min_p=0.3),
    replace(PLAIN, top_k=9, top_p=0.8),
    replace(PLAIN, top_k=9, min_p=0.1),
    replace(PLAIN, temperature=1.5, top_k=12, top_p=0.95, min_p=0.05),
    replace(PLAIN, temperature=0.7, top_p=0.6, min_p=0.2),
]
NUM_DRAWS = 4000
VOCAB_SIZE = 20


def describe(params: SamplingParams) -> str:
    """What differs from plain sampling, as a test id."""
    names = ("temperature", "top_k", "top_p", "min_p")
    changed = [name for name in names if getattr(params, name) != getattr(PLAIN, name)]
    return "-".join(f"{name}={getattr(params, name)}" for name in changed) or "plain"


def random_logits(seed: int, rows: int = 1, vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Logits with a spread like a model's."""
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2.0


def reference(logits: list[float], params: SamplingParams) -> list[float]:
    """The distribution over tokens, slowly: softmax, then each filter as its definition reads."""
    peak = max(logits)
    weights = {t: math.exp((logit - peak) / params.temperature) for t, logit in enumerate(logits)}
    ranked = sorted(weights, key=lambda t: (-weights[t], t))[: params.top_k or len(logits)]
    mass = sum(weights[t] for t in ranked)
    kept, reached = [], 0.0
    for token in ranked:
        if kept and reached >= params.top_p:
            break
        kept.append(token)
        reached += weights[token] / mass
    kept = [t for t in kept if weights[t] >= params.min_p * weights[ranked[0]]]
    mass = sum(weights[t] for t in kept)
    return [weights[t] / mass if t in kept else 0.0 for t in range(len(logits))]


def warped(logits: Tensor, params: SamplingParams) -> Tensor:
    """The distribution that transformers' warpers leave, in their order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        warpers.append(MinPLogitsWarper(params.min_p))
    scores: Tensor = warpers(torch.zeros(len(logits), 1, dtype=torch.int64), logits.double())
    return scores.softmax(-1)


@pytest.fixture(params=EITHER)
def sample(request: pytest.FixtureRequest) -> Sampler:
    """Each sampler in turn."""
    return torch_sample if request.param == "torch" else NativeSampler(find_kernels(), threads=2)


def draw_many(sample: Sampler, logits: Tensor, params: SamplingParams, count: int = NUM_DRAWS) -> list[int]:
    """`count` draws from one row of logits, with seeds 0, 1, 2 and so on."""
    seeded = [replace(params, seed=seed) for seed in range(count)]
    return sample(logits.expand(count, -1).contiguous(), seeded, [7] * count)


@pytest.mark.parametrize("params", FILTERS, ids=describe)
def test_frequencies_follow_the_reference_distribution(sample: Sampler, params: SamplingParams) -> None:
    """Nothing outside the support is ever drawn, and chi-square per degree of freedom is ordinary."""
    logits = random_logits(1)
    expected = reference(logits[0].tolist(), params)
    drawn = draw_many(sample, logits, params)
    counts = [drawn.count(token) for token in range(VOCAB_SIZE)]
    assert all(count == 0 for count, p in zip(counts, expected, strict=True) if p == 0.0)
    likely = [(count, p * NUM_DRAWS) for count, p in zip(counts, expected, strict=True) if p * NUM_DRAWS > 5]
    chi_square = sum((count - mean) ** 2 / mean for count, mean in likely)
    freedom = max(len(likely) - 1, 1)
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations


@pytest.mark.parametrize("params", FILTERS, ids=describe)
def test_the_kept_tokens_are_those_that_transformers_keeps(sample: Sampler, params: SamplingParams) -> None:
    """Every token that transformers keeps and that is not very rare is drawn, and no other."""
    for seed in range(3):
        logits = random_logits(10 + seed)
        expected = warped(logits, params)[0]
        drawn = set(draw_many(sample, logits, params, 2000))
        assert drawn <= {t for t in range(VOCAB_SIZE) if expected[t] > 0}
        assert drawn >= {t for t in range(VOCAB_SIZE) if expected[t] > 0.01}


@pytest.mark.parametrize("params", FILTERS, ids=describe)
def test_the_reference_agrees_with_transformers(params: SamplingParams) -> None:
    """Two definitions of one distribution, on forty random rows."""
    for seed in range(40):
        logits = random_logits(100 + seed)
        ours = torch.tensor(reference(logits[0].tolist(), params), dtype=torch.float64)
        torch.testing.assert_close(ours, warped(logits, params)[0], atol=1e-9, rtol=0)


def test_greedy_takes_the_likeliest_and_the_first_of_equals(sample: Sampler) -> None:
    """Whatever the filters and the seed say."""
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 3.0, 4.0, 1.0]])
    params = [replace(PLAIN, temperature=0.0, top_p=0.1, seed=9), replace(PLAIN, temperature=1e-7)]
    assert sample(logits, params, [1, 2]) == [1, 0]


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 0.02])
def test_a_small_temperature_comes_down_to_greedy(sample: Sampler, temperature: float) -> None:
    """Without overflow: the quotients reach millions."""
    logits = random_logits(2, rows=50) * 100
    params = [replace(PLAIN, temperature=temperature, seed=row) for row in range(50)]
    assert sample(logits, params, [3] * 50) == logits.argmax(-1).tolist()


def test_a_large_temperature_comes_down_to_uniform(sample: Sampler) -> None:
    """Every token gets its share."""
    drawn = draw_many(sample, random_logits(2), replace(PLAIN, temperature=1e6))
    assert all(150 < drawn.count(token) < 250 for token in range(VOCAB_SIZE))


@pytest.mark.parametrize("temperature", [1e39, 1e300, float("inf"), float("nan")])
@pytest.mark.parametrize("params", FILTERS, ids=describe)
def test_a_temperature_out_of_range_harms_nothing(
    params: SamplingParams, temperature: float, sample: Sampler
) -> None:
    """A broken generation_config.json may hold one: some token or none, and no foreign memory."""
    logits = random_logits(2, rows=3)
    logits[0, ::2] = float("-inf")
    drawn = sample(logits, [replace(params, temperature=temperature)] * 3, [1, 2, 3])
    assert all(token is None or 0 <= token < VOCAB_SIZE for token in drawn)


@pytest.mark.parametrize("params", FILTERS, ids=describe)
def test_tokens_with_no_weight_are_never_drawn(sample: Sampler, params: SamplingParams) -> None:
    """A logit of minus infinity forbids a token, also at the ends of the vocabulary."""
    logits = random_logits(3)
    banned = {0, 4, 5, VOCAB_SIZE - 1}
    logits[0, list(banned)] = float("-inf")
    assert banned.isdisjoint(draw_many(sample, logits, params, 1000))


def test_one_allowed_token_is_always_drawn(sample: Sampler) -> None:
    """The staircase has a single step."""
    logits = torch.full((1, 6), float("-inf"))
    logits[0, 2] = -4.0
    for params in FILTERS:
        assert set(draw_many(sample, logits, params, 50)) == {2}


@pytest.mark.parametrize("top_p", [0.0, 1e-12])
def test_a_vanishing_top_p_leaves_the_likeliest(sample: Sampler, top_p: float) -> None:
    """Clients send top_p 0 to mean greedy."""
    logits = random_logits(4)
    assert set(draw_many(sample, logits, replace(PLAIN, top_p=top_p), 50)) == {int(logits.argmax())}


def test_top_p_that_is_reached_exactly_takes_no_token_more(sample: Sampler) -> None:
    """Four equal tokens: half of the mass is two of them, the earlier ones."""
    drawn = draw_many(sample, torch.zeros(1, 4), replace(PLAIN, top_p=0.5), 200)
    assert set(drawn) == {0, 1}


def test_min_p_of_one_leaves_the_likeliest(sample: Sampler) -> None:
    """And its equals."""
    logits = torch.tensor([[1.0, 4.0, 0.0, 4.0]])
    assert set(draw_many(sample, logits, replace(PLAIN, min_p=1.0), 200)) == {1, 3}


@pytest.mark.parametrize("kind", range(len(FILTERS)))
def test_a_draw_does_not_depend_on_the_other_rows(sample: Sampler, kind: int) -> None:
    """Alone, or anywhere in a batch of all kinds of rows, greedy ones included."""
    rng = random.Random(kind)
    logits = random_logits(5, rows=40, vocab_size=900)
    mine = replace(FILTERS[kind], seed=77)
    for _ in range(5):
        others = [replace(rng.choice(FILTERS), seed=rng.randrange(1 << 40)) for _ in range(39)]
        others[0] = replace(PLAIN, temperature=0.0)
        place = rng.randrange(40)
        params = [*others[:place], mine, *others[place:]]
        together = sample(logits, params, [rng.randrange(500) for _ in range(place)] + [8] * (40 - place))
        assert together[place] == sample(logits[place : place + 1], [mine], [8])[0]


def test_a_draw_depends_on_the_seed_and_on_the_position(sample: Sampler) -> None:
    """The same pair gives the same token, another seed or place another draw."""
    logits = random_logits(6, vocab_size=1000).expand(64, -1).contiguous()
    by_seed = sample(logits, [replace(PLAIN, seed=seed) for seed in range(64)], [5] * 64)
    by_position = sample(logits, [replace(PLAIN, seed=5)] * 64, list(range(64)))
    assert by_seed == sample(logits, [replace(PLAIN, seed=seed) for seed in range(64)], [5] * 64)
    assert len(set(by_seed)) > 20
    assert len(set(by_position)) > 20
    assert by_seed[5] == by_position[5]


@pytest.mark.parametrize("params", FILTERS, ids=describe)
@needs_kernels
def test_both_samplers_draw_the_same(params: SamplingParams) -> None:
    """Their sums differ in the last places, so hardly ever a token; over a vocabulary of real size."""
    native = NativeSampler(find_kernels(), threads=2)
    logits = random_logits(8, rows=40, vocab_size=50_000) * 2
    seeded = [replace(params, seed=seed) for seed in range(40)]
    ours, theirs = native(logits, seeded, [5] * 40), torch_sample(logits, seeded, [5] * 40)
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 1


def test_the_logits_are_left_as_they_are(sample: Sampler) -> None:
    """The runner may reuse them."""
    logits = random_logits(7, rows=2)
    before = logits.clone()
    sample(logits, [FILTERS[13], PLAIN], [1, 2])
    assert torch.equal(logits, before)


def test_no_rows_give_no_tokens(sample: Sampler) -> None:
    """A step of prefill chunks only samples nothing."""
    assert sample(torch.zeros(0, 9), [], []) == []


@pytest.mark.parametrize(
    ("seed", "position", "value"),
    [(0, 0, 0.5079605879681605), (1, 0, 0.17601256256594233), (0, 1, 0.4224192380508798)],
)
def test_uniform_numbers_never_change(seed: int, position: int, value: float) -> None:
    """A client that fixes a seed expects the same answer from the next release."""
    assert uniform(seed, position) == value


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    """Along seeds, along positions and along both at once: no stripes."""
    for numbers in (
        [uniform(seed, 3) for seed in range(10_000)],
        [uniform(42, position) for position in range(10_000)],
        [uniform(both, both) for both in range(10_000)],
        [uniform(-seed, 0) for seed in range(10_000)],
        [uniform(seed << 64, seed) for seed in range(10_000)],
    ):
        assert all(0.0 <= number < 1.0 for number in numbers)
        buckets = [0] * 20
        for number in numbers:
            buckets[int(number * 20)] += 1
        assert all(400 < count < 600 for count in buckets)
        lag = sum((a - 0.5) * (b - 0.5) for a, b in itertools.pairwise(numbers)) / len(numbers)
        assert abs(lag * 12) < 0.05  # neighbours do not go together


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_holds_no_distribution_gives_none(sample: Sampler, bad: float) -> None:
    """Greedy or drawn, filtered or not; the other rows are as ever."""
    logits = random_logits(4, rows=4)
    logits[1, 5] = logits[2, 5] = logits[3, 5] = bad
    params = [PLAIN, replace(PLAIN, temperature=0.0), PLAIN, FILTERS[3]]
    expected = sample(logits[:1], [PLAIN], [2])
    assert sample(logits, params, [2] * 4) == [*expected, None, None, None]
