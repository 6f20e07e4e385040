"""Sampling under grammars: only what a mask allows comes, as if the rest of the vocabulary were not there."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from native_kernels import EITHER, find_kernels, needs_kernels
from penstock.engine.native.sampler import NativeSampler
from penstock.engine.sampler import Sampler
from penstock.engine.sampler import sample as torch_sample
from penstock.engine.sampling import Masks, SamplingParams

PLAIN = SamplingParams(max_tokens=1)
FILTERED = replace(PLAIN, temperature=1.5, top_k=50, top_p=0.95, min_p=0.01)
GREEDY = replace(PLAIN, temperature=0.0)


@pytest.fixture(params=EITHER)
def sample(request: pytest.FixtureRequest) -> Sampler:
    """Each sampler in turn."""
    return torch_sample if request.param == "torch" else NativeSampler(find_kernels(), threads=2)


def random_logits(rows: int, size: int, seed: int = 0) -> Tensor:
    """Logits with a spread like a model's."""
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def masks_of(allowed: dict[int, list[int]], size: int) -> Masks:
    """From allowed tokens by row."""
    bits = np.zeros((len(allowed), -(-size // 32) * 32), dtype=np.uint8)
    for place, tokens in enumerate(allowed.values()):
        bits[place, tokens] = 1
    words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    return Masks(np.asarray(list(allowed), dtype=np.int32), words)


def without(logits: Tensor, allowed: dict[int, list[int]]) -> Tensor:
    """The logits with minus infinity where a token may not come."""
    changed = logits.clone()
    for row, tokens in allowed.items():
        changed[row] = float("-inf")
        changed[row, tokens] = logits[row, tokens]
    return changed


@pytest.mark.parametrize("share", [0.001, 0.1, 0.2, 0.9, 1.0], ids=str)
@pytest.mark.parametrize("params", [PLAIN, FILTERED, GREEDY], ids=["plain", "filtered", "greedy"])
def test_a_masked_row_draws_as_if_the_rest_were_not_there(
    sample: Sampler, params: SamplingParams, share: float
) -> None:
    """The same token at the same number, up to a rounded sum; rows without a mask are as ever."""
    size, rng = 10_007, random.Random(share)
    logits = random_logits(40, size)
    allowed = {row: sorted(rng.sample(range(size), max(1, int(size * share)))) for row in range(1, 40, 2)}
    seeded = [replace(params, seed=seed) for seed in range(40)]
    expected = torch_sample(without(logits, allowed), seeded, [5] * 40)
    found = sample(logits.clone(), seeded, [5] * 40, masks_of(allowed, size))
    assert all(found[row] in tokens for row, tokens in allowed.items())
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 1


@needs_kernels
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_greedy_samplers_agree_for_any_width_and_mask(size: int, seed: int) -> None:
    """Bits behind the vocabulary mean nothing."""
    rng = np.random.default_rng(seed)
    words = rng.integers(-(2**31), 2**31, size=(3, -(-size // 32)), dtype=np.int64).astype(np.int32)
    words[0] &= rng.integers(-(2**31), 2**31, size=words.shape[1], dtype=np.int64).astype(np.int32)
    words[1] = -1
    masks = Masks(np.asarray([3, 0, 2], dtype=np.int32), words)
    logits, params = random_logits(4, size, seed % 2**31), [GREEDY] * 4
    expected = torch_sample(logits.clone(), params, [0] * 4, masks)
    found = NativeSampler(find_kernels(), 2)(logits.clone(), params, [0] * 4, masks)
    assert found == expected
    plain = torch_sample(logits, params, [0] * 4)
    assert [found[0], found[1]] == [plain[0], plain[1]]  # one allows all, one has no mask


def test_a_mask_that_allows_nothing_leaves_no_distribution(sample: Sampler) -> None:
    """Nor one that allows only what is impossible."""
    logits = random_logits(3, 100)
    logits[1, 7] = float("-inf")
    masks = masks_of({0: [], 1: [7], 2: [7]}, 100)
    assert sample(logits, [PLAIN] * 3, [1] * 3, masks) == [None, None, 7]


def test_broken_logits_that_may_not_come_do_no_harm(sample: Sampler) -> None:
    """Only what is allowed counts."""
    logits = random_logits(2, 100)
    logits[:, 50] = float("nan")
    masks = masks_of({0: [3], 1: [*range(50), *range(51, 100)]}, 100)
    first, second = sample(logits, [PLAIN] * 2, [1] * 2, masks)
    assert first == 3
    assert second is not None


@needs_kernels
@pytest.mark.parametrize(
    ("rows", "words", "what"), [([4], 4, "no such row"), ([-1], 4, "no such row"), ([0], 3, "allowed")]
)
def test_masks_of_another_shape_are_refused(rows: list[int], words: int, what: str) -> None:
    """The kernel reads no memory that is not the mask's."""
    masks = Masks(np.asarray(rows, dtype=np.int32), np.zeros((len(rows), words), dtype=np.int32))
    with pytest.raises(ValueError, match=what):
        NativeSampler(find_kernels(), 1)(random_logits(2, 100), [PLAIN] * 2, [1] * 2, masks)
