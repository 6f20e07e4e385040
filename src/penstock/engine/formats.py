"""How weights can be stored: names, sizes, and which part of a model takes which. No torch here."""

from __future__ import annotations

from penstock.engine.spec import DecoderSpec

LANES = 16
"""Values of float32 in a vector: what the kernels pad widths to."""
PANEL = 32
"""Output channels that the kernels store together."""
GROUP = 32
"""Weights of a row that share a scale in int4."""
# Bits of one weight, its share of the scales not counted.
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}


def head_format(weight_format: str) -> str:
    """The format of the output head, and of the embedding tied to it, in a model of `weight_format`.

    int4 keeps them at int8: logits lie near enough to each other for int4 to reorder them.
    """
    return "int8" if weight_format == "int4" else weight_format


def lookup_format(weight_format: str) -> str:
    """The format of an embedding of its own: it costs no time, so it keeps the checkpoint's precision."""
    return "bfloat16" if weight_format in ("int8", "int4") else weight_format


def weight_bytes(weight_format: str, outputs: int, inputs: int) -> int:
    """Bytes of a weight of that shape, scales and padding included."""
    rows = -(-outputs // PANEL) * PANEL
    if weight_format == "int8":
        return rows * (-(-inputs // 4) * 4 + 4)
    if weight_format == "int4":
        return rows * -(-inputs // GROUP) * (GROUP // 2 + 2)
    return rows * inputs * BITS[weight_format] // 8


def model_bytes(spec: DecoderSpec, weight_format: str, embedding: str) -> int:
    """Bytes of all weights of a model; norms and biases, which are small, in float32.

    `embedding`: the format of the embedding's own table; empty where it is the head.
    """
    width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    hidden, mlp = spec.hidden_size, -(-spec.intermediate_size // LANES) * LANES
    shapes = ((width, hidden), (hidden, spec.num_heads * spec.head_dim), (2 * mlp, hidden), (hidden, mlp))
    layer = sum(weight_bytes(weight_format, outputs, inputs) for outputs, inputs in shapes)
    layer += 4 * (2 * hidden + width + hidden)
    table = weight_bytes(head_format(weight_format), spec.vocab_size, hidden)
    if embedding:
        table += weight_bytes(embedding, spec.vocab_size, hidden)
    return spec.num_layers * layer + table


def workspace_bytes(spec: DecoderSpec, tokens: int, rows: int) -> int:
    """Bytes a step of `tokens` tokens needs besides weights and KV cache, with logits for `rows` of them."""
    width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    out = spec.num_heads * spec.head_dim
    widest = max(spec.hidden_size, out, spec.intermediate_size)
    floats = spec.hidden_size + width + out + spec.intermediate_size + spec.head_dim + widest
    return tokens * (4 * floats + widest) + 4 * rows * spec.vocab_size


def kv_block_bytes(spec: DecoderSpec, kv_format: str, block_size: int, *, is_native: bool) -> int:
    """Bytes of one KV block over all layers; the kernels pad values to vectors and pages to 64 bytes."""
    item = BITS[kv_format] // 8
    if not is_native:
        return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * item * block_size
    padded = -(-spec.head_dim // LANES) * LANES
    page = (spec.head_dim + padded) * block_size * item + (8 * block_size if kv_format == "int8" else 0)
    return spec.num_layers * spec.num_kv_heads * -(-page // 64) * 64
