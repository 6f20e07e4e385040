"""The lab's attention against the engine's."""

import torch

from dense_attention import DenseAttention
from penstock.lab.attention import ShortRowAttention


def test_short_rows_agree_with_the_fused_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5 * 7, 4, 16, generator=generator)
    key, value = (torch.randn(5 * 7, 2, 16, generator=generator) for _ in range(2))
    ours = ShortRowAttention(5, 7)(0, query, key, value)
    theirs = DenseAttention(5, 7)(0, query, key, value)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
