"""What engine_cpu.py asks of which engine, and what it keeps of the answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peers.figures import percentile

OURS = "penstock"
VARIANTS = {OURS: "auto", "penstock-none": "none", "penstock-int4": "int4"}
"""Our engine, under several names, by its setting `quantize`."""
PEERS = ("llama.cpp", "openvino", "transformers")

PROMPT_TOKENS = 128
DECODE_TOKENS = 64
PREFILL_TOKENS = 512
PREFIX_TOKENS = 2000
SUFFIX_TOKENS = 32
LONG_TOKENS = 4000
QUIET_TOKENS = 150
# Tokens of the warm-up turn, which makes an engine compile and allocate what the real turns need.
WARM_UP_TOKENS = 4
_VOCABULARY = range(1000, 151_900)


class Prompts:
    """Random token ids that never repeat, so that no prefix cache can help where none is meant to."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, tokens: int) -> list[int]:
        """A prompt of that length."""
        return self._random.choices(_VOCABULARY, k=tokens)


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work: what is sent (the same to every engine of a turn) and what is kept."""

    op: str
    make: Callable[[Prompts], dict[str, Any]]
    keep: Callable[[dict[str, Any]], dict[str, float]]
    engines: tuple[str, ...] = (*VARIANTS, *PEERS)
    warm_up: dict[str, Any] | None = field(default_factory=dict)
    """What the warm-up turn changes; None leaves this work out of it."""


def _decode(batch: int) -> Workload:
    return Workload(
        "decode",
        lambda prompts: {
            "prompts": [prompts.one(PROMPT_TOKENS) for _ in range(batch)],
            "tokens": DECODE_TOKENS,
        },
        lambda answer: {"tokens_per_s": answer["tokens_per_s"]},
        warm_up={"tokens": WARM_UP_TOKENS},
    )


def _keep_shared(answer: dict[str, float]) -> dict[str, float]:
    return {**answer, "ratio": answer["second_s"] / answer["first_s"]}


def _keep_stall(answer: dict[str, list[float]]) -> dict[str, float]:
    quiet, busy = answer["quiet_ms"], answer["busy_ms"]
    kept = {"ratio": percentile(busy, 0.99) / percentile(quiet, 0.99), "busy_tokens": len(busy)}
    for name, gaps in (("quiet", quiet), ("busy", busy)):
        kept[f"{name}_p50_ms"], kept[f"{name}_p99_ms"] = percentile(gaps, 0.5), percentile(gaps, 0.99)
    return kept


def _shared(prompts: Prompts) -> dict[str, Any]:
    prefix = prompts.one(PREFIX_TOKENS)
    return {name: prefix + prompts.one(SUFFIX_TOKENS) for name in ("first", "second")}


WORKLOADS = {
    "decode1": _decode(1),
    "decode8": _decode(8),
    "decode16": _decode(16),
    "prefill512": Workload(
        "prefill",
        lambda prompts: {"prompt": prompts.one(PREFILL_TOKENS)},
        lambda answer: {
            "tokens_per_s": answer["tokens_per_s"],
            "ttft_ms": answer["seconds"] * 1e3,
            "token": answer["token"],
        },
    ),
    "prefix2000": Workload("shared_prefix", _shared, _keep_shared, engines=(OURS,), warm_up=None),
    "stall4000": Workload(
        "stall",
        lambda prompts: {
            "prompt": prompts.one(PROMPT_TOKENS),
            "long": prompts.one(LONG_TOKENS),
            "quiet_tokens": QUIET_TOKENS,
        },
        _keep_stall,
        engines=(OURS, "openvino"),
        warm_up=None,
    ),
}
