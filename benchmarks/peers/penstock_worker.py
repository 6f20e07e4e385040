"""Worker: this repository's engine, in process, through `load_model` and the core's add and step."""

from __future__ import annotations

import sys
from typing import Any

from penstock.app.config import let_threads_sleep

let_threads_sleep()  # as `penstock up` does, before torch is loaded

import torch  # noqa: E402

from peers.measuring import Stepping, handlers  # noqa: E402
from peers.protocol import Unsupported, memory, serve  # noqa: E402
from penstock import __version__  # noqa: E402
from penstock.base.errors import ConfigurationError  # noqa: E402
from penstock.engine.core import EngineCore  # noqa: E402
from penstock.engine.sampling import SamplingParams  # noqa: E402
from penstock.engine.sequence import Sequence  # noqa: E402
from penstock.engine.settings import EngineSettings  # noqa: E402
from penstock.replica.loading import load_model  # noqa: E402

# As many tokens of KV cache as the longest workload needs, and some room for cached prefixes.
KV_CACHE_MB = 128
STREAM_BYTES = 1 << 30


class PenstockEngine:
    """The core, stepped."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core

    def add(self, key: int, prompt: list[int], max_tokens: int) -> None:
        """See Stepped."""
        self._core.add(Sequence(key, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0)))

    def step(self) -> dict[int, int]:
        """See Stepped."""
        outputs = self._core.step()
        for output in outputs:
            if output.error is not None:
                raise output.error
        return {output.sequence_id: output.token for output in outputs if output.token is not None}

    def cancel(self, key: int) -> None:
        """See Stepped."""
        self._core.cancel(key)


def settings_for(model: str, threads: int, quantize: str, **others: Any) -> EngineSettings:
    """Engine settings, where this version can be told how to quantise.

    Raises:
        Unsupported: it cannot, or not so.
    """
    options: dict[str, Any] = {"model": model, "threads": threads, **others}
    if "draft_rows" in EngineSettings.model_fields:
        options["draft_rows"] = 0  # random weights repeat themselves, and the peers do not speculate
    if "quantize" in EngineSettings.model_fields:
        options["quantize"] = quantize
    elif quantize not in ("auto", "none"):
        raise Unsupported(f"this version does not quantise to {quantize}")
    return EngineSettings(**options)


def load(model: str, threads: int, quantize: str) -> dict[str, Any]:
    """Loads the checkpoint and adds the measuring handlers."""
    try:
        core = load_model(
            settings_for(model, threads, quantize, kv_cache_mb=KV_CACHE_MB), "bench"
        ).service.core
    except ConfigurationError as error:
        raise Unsupported(error.message) from error
    plan = core.runner.memory
    compute = plan.compute
    print(compute.describe(), file=sys.stderr)
    kernels = "native" if compute.kernels else "torch"
    HANDLERS.update(handlers(Stepping(PenstockEngine(core))))
    return {
        "versions": {"penstock": __version__, "torch": torch.__version__},
        "plan": plan.describe(),
        "compute": f"{kernels} kernels, weights {compute.weight_format}, KV {compute.kv_format}",
        "weights_bytes": plan.weight_bytes,
        "kv_bytes": plan.num_blocks * plan.block_bytes,
        "memory": memory(),
    }


def bandwidth(threads: int) -> dict[str, float]:
    """GB/s at which `threads` read memory: the best of several sums of a large array."""
    import time

    torch.set_num_threads(threads)
    data = torch.ones(STREAM_BYTES // 4)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - started)
    return {"gb_per_s": STREAM_BYTES / best / 1e9}


def quality(threads: int, quantize: str, per_family: int) -> dict[str, Any]:
    """See quality.py; the built-in model in float32, with its matrices quantised as said."""
    from peers.quality import judge

    return judge(settings_for("builtin:tiny", threads, quantize, dtype="float32"), per_family)


HANDLERS: dict[str, Any] = {"load": load, "bandwidth": bandwidth, "quality": quality}

if __name__ == "__main__":
    serve(HANDLERS)
