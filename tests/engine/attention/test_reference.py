"""The attention contract, for the paged reference: the oracle of every faster backend."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.engine.attention.reference import MAX_SCORES, ReferenceAttention
from penstock.engine.batch import build_batch
from penstock.engine.plan import Chunk, StepPlan
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from penstock.engine.spec import DecoderSpec

CPU = torch.device("cpu")
HEADS, HEAD_DIM, NUM_BLOCKS, BLOCK_SIZE = 4, 6, 24, 3
BASE = DecoderSpec.from_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 10,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
)


def spec_with(kv_heads: int = 2, windows: tuple[int | None, ...] = (None, None, None)) -> DecoderSpec:
    """The base spec with other key-value heads and windows."""
    return dataclasses.replace(BASE, num_kv_heads=kv_heads, windows=windows)


def backend_of(spec: DecoderSpec, dtype: torch.dtype = torch.float32) -> ReferenceAttention:
    """A cache full of NaN, so that reading what nobody wrote cannot go unseen."""
    backend = ReferenceAttention(spec, NUM_BLOCKS, BLOCK_SIZE, dtype, CPU)
    backend.keys.fill_(float("nan"))
    backend.values.fill_(float("nan"))
    return backend


def random_states(spec: DecoderSpec, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one sequence."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(length, HEADS, HEAD_DIM, generator=generator),
        torch.randn(length, spec.num_kv_heads, HEAD_DIM, generator=generator),
        torch.randn(length, spec.num_kv_heads, HEAD_DIM, generator=generator),
    )


def naive(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Attention of a whole sequence by torch's own kernel with a mask."""
    length = len(query)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    visible = (distance >= 0) & (distance < (window or length + 1))
    group = HEADS // key.shape[1]
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1),
        key.repeat_interleave(group, 1).transpose(0, 1),
        value.repeat_interleave(group, 1).transpose(0, 1),
        attn_mask=visible,
    )
    return out.transpose(0, 1).flatten(1)


def attend_in_chunks(
    backend: ReferenceAttention,
    layer: int,
    lengths: list[int],
    states: list[tuple[Tensor, Tensor, Tensor]],
    count: int,
) -> list[Tensor]:
    """Outputs of sequences that advance side by side by `count` positions."""
    blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(0)).tolist()
    sequences = [
        Sequence(i, [0] * length, SamplingParams(max_tokens=1), block_table=blocks[i :: len(lengths)])
        for i, length in enumerate(lengths)
    ]
    rows: list[list[Tensor]] = [[] for _ in lengths]
    for start in range(0, max(lengths), count):
        chunks = [
            Chunk(s, start, min(count, len(s.tokens) - start)) for s in sequences if start < len(s.tokens)
        ]
        parts = [
            [
                tensor[start : start + chunk.count]
                for chunk in chunks
                for tensor in [states[chunk.sequence.id][kind]]
            ]
            for kind in range(3)
        ]
        attend = backend.bind(build_batch(StepPlan(tuple(chunks)), BLOCK_SIZE))
        out = attend(layer, *(torch.cat(part) for part in parts))
        for chunk, part in zip(chunks, out.split([chunk.count for chunk in chunks]), strict=True):
            rows[chunk.sequence.id].append(part)
    return [torch.cat(row) for row in rows]


@pytest.mark.parametrize("count", [1, 4, 30])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_token_sees_its_own_sequence_up_to_itself(kv_heads: int, window: int | None, count: int) -> None:
    """Within the window, over scattered blocks, next to other sequences, in chunks of any size."""
    spec = spec_with(kv_heads, (window, None, window))
    lengths = [20, 1, 13]
    states = [random_states(spec, length, seed) for seed, length in enumerate(lengths)]
    outputs = attend_in_chunks(backend_of(spec), 2, lengths, states, count)
    for out, (query, key, value) in zip(outputs, states, strict=True):
        torch.testing.assert_close(out, naive(query, key, value, window), atol=1e-5, rtol=0)


def test_layers_have_caches_of_their_own() -> None:
    """Writing one layer leaves the others untouched, and layers may come in any order."""
    spec = spec_with(windows=(None, 2, None))
    backend = backend_of(spec)
    by_layer = {layer: random_states(spec, 10, layer) for layer in range(3)}
    for layer in (2, 0, 1):
        (out,) = attend_in_chunks(backend, layer, [10], [by_layer[layer]], 10)
        torch.testing.assert_close(out, naive(*by_layer[layer], spec.windows[layer]), atol=1e-5, rtol=0)


def test_only_the_slots_of_the_batch_are_written() -> None:
    """The rest of the pool belongs to others."""
    spec = spec_with()
    backend = backend_of(spec)
    attend_in_chunks(backend, 0, [4], [random_states(spec, 4, 0)], 4)
    assert int((~backend.keys.isnan()).flatten(2).any(-1).sum()) == 4
    assert backend.keys[1:].isnan().all()
    assert int((~backend.values.isnan()).flatten(2).any(-1).sum()) == 4


def test_the_output_has_the_dtype_of_the_query() -> None:
    """bfloat16 in, bfloat16 out, the softmax in float32 between."""
    spec = spec_with()
    states = [tensor.bfloat16() for tensor in random_states(spec, 9, 0)]
    (out,) = attend_in_chunks(backend_of(spec, torch.bfloat16), 0, [9], [tuple(states)], 4)
    assert out.dtype == torch.bfloat16
    exact = naive(*(tensor.float() for tensor in states), None)
    torch.testing.assert_close(out.float(), exact, atol=0.02, rtol=0.02)


def test_a_long_prompt_is_attended_in_parts_with_the_same_result() -> None:
    """The bound on scores is crossed here: 4 heads x 2,300 queries x 2,300 positions."""
    spec, length = spec_with(), 2_300
    assert HEADS * length * length > MAX_SCORES
    query, key, value = random_states(spec, length, seed=8)
    backend = ReferenceAttention(spec, -(-length // BLOCK_SIZE), BLOCK_SIZE, torch.float32, CPU)
    sequence = Sequence(1, [0] * length, SamplingParams(max_tokens=1))
    sequence.block_table = list(range(-(-length // BLOCK_SIZE)))
    batch = build_batch(StepPlan((Chunk(sequence, 0, length),)), BLOCK_SIZE)
    ours = backend.bind(batch)(0, query, key, value).view(length, HEADS, HEAD_DIM)
    split = [states.transpose(0, 1) for states in (query, key, value)]
    theirs = F.scaled_dot_product_attention(*split, is_causal=True, enable_gqa=True).transpose(0, 1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
