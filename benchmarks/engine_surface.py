"""What the engine's features cost and bring, on a random checkpoint of Qwen2-0.5B's shape in int8.

Speculation by prompt lookup at batch 1, JSON schemas at batch 8, the memory of a long prompt's
log-probabilities. Each figure is a ratio of two runs of one engine in turn, so that a change of the machine's
speed hits both.

usage: python benchmarks/engine_surface.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from penstock.app.config import let_threads_sleep

let_threads_sleep()  # as `penstock up` does, before torch is loaded

from peers.checkpoint import ensure_checkpoint  # noqa: E402
from peers.environments import BENCHMARKS, MODELS  # noqa: E402
from peers.figures import Bar, bars_table, machine, ratios, summary, table, write_between_markers  # noqa: E402
from surface import dictated, echo, schemas  # noqa: E402
from surface.turns import speeds  # noqa: E402

from penstock.engine.settings import EngineSettings  # noqa: E402
from penstock.replica.loading import load_model  # noqa: E402
from penstock.replica.model import ServedModel  # noqa: E402

RESULTS = BENCHMARKS / "results" / "engine_surface.json"
PAGE = BENCHMARKS.parent / "docs" / "benchmarks.md"
LEAST_REPEATS = 5
KV_CACHE_MB = 384
DRAFTS = {"plain": 0, "drafts": EngineSettings().draft_rows}


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def lookup(model: ServedModel, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Tokens per second by workload, without drafts and with them."""
    core = model.service.core
    sampler = dictated.Dictated(core.sampler)
    core.sampler = sampler
    found: dict[str, dict[str, list[float]]] = {}
    for name, text in dictated.texts().items():
        found[name] = speeds(
            lambda kind, text=text: dictated.seconds_per_token(core, sampler, text, DRAFTS[kind]),
            "plain",
            "drafts",
            repeats,
        )
        say(f"{name}: {summary(found[name]['plain'])} tok/s, with drafts {summary(found[name]['drafts'])}")
    core.sampler = sampler.inner
    return found


def measure(repeats: int) -> dict[str, Any]:
    """All figures."""
    settings = EngineSettings(model=str(ensure_checkpoint(MODELS)), kv_cache_mb=KV_CACHE_MB)
    model = load_model(settings, "bench")
    added = [echo.added_mib(model.service.core) for _ in range(repeats)]
    say(f"echo over {echo.PROMPT_TOKENS} tokens adds {summary(added)} MiB")
    return {
        "lookup": lookup(model, repeats),
        "json": schemas.measure(model, repeats, say),
        "echo_added_mib": added,
    }


def report(figures: dict[str, Any]) -> tuple[list[Bar], str]:
    """The demands, and the page's tables."""
    lookups = figures["lookup"]
    gains = {name: ratios(found["drafts"], found["plain"]) for name, found in lookups.items()}
    cost = ratios(figures["json"]["schema"], figures["json"]["free"])
    bars = [
        Bar("prompt lookup, an edit that repeats its prompt", "at least 1.5 x", 1.5, gains["edit"]),
        Bar("prompt lookup, prose that was not seen", "at least 0.97 x", 0.97, gains["prose"]),
        Bar("prompt lookup, noise", "at least 0.97 x", 0.97, gains["noise"]),
        Bar("JSON schema, batch 8, tokens/s", "at least 0.95 x", 0.95, cost),
        Bar(
            f"echo over {echo.PROMPT_TOKENS:,} tokens, memory added, MiB",
            "at most 190 MiB (200 MB)",
            190,
            tuple(figures["echo_added_mib"]),
            is_least=False,
            digits=0,
        ),
    ]
    rows = [
        [name, summary(found["plain"]), summary(found["drafts"]), summary(gains[name], 2)]
        for name, found in lookups.items()
    ]
    rows.append(
        [
            "JSON, batch 8",
            summary(figures["json"]["free"]),
            summary(figures["json"]["schema"]),
            summary(cost, 2),
        ]
    )
    speeds = table(["work", "tokens/s without", "with", "ratio"], rows)
    return bars, f"{speeds}\n\n{bars_table(bars)}"


def main() -> None:
    """Runs all and writes the results; a whole run writes the page too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS)
    repeats = parser.parse_args().repeats
    figures = measure(repeats)
    bars, text = report(figures)
    print(text)
    if repeats < LEAST_REPEATS:
        say(f"fewer than {LEAST_REPEATS} repeats: nothing written")
        return
    content = {"machine": machine(), "figures": figures, "bars": [bar.to_dict() for bar in bars]}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_between_markers(PAGE, "engine_surface", text)


if __name__ == "__main__":
    main()
