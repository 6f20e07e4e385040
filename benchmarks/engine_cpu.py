"""Compares engines on a CPU: ours, llama.cpp, openvino-genai and transformers, on the same random weights.

Writes a checkpoint of Qwen2-0.5B's shape under .bench/, installs each engine into an environment of its own
there (once; llama.cpp is compiled, about ten minutes), and starts each as a process that is stopped (SIGSTOP)
while it is not the one being measured. In every repeat each engine gets the same work in turn, so that a
change of the machine's speed hits all; ratios are taken within a repeat. Prompts are random and new.

A whole run writes benchmarks/results/engine_cpu.json and the tables of docs/benchmarks.md; a part of it
(--only, --engines, fewer than 5 repeats) writes .bench/engine_cpu.json.

usage: python benchmarks/engine_cpu.py [--repeats 5] [--only decode1,prefill512] [--engines penstock,openvino]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from peers.checkpoint import ensure_checkpoint
from peers.engine_report import bars, markdown
from peers.environments import (
    BENCHMARKS,
    MODELS,
    ROOT,
    PreparationError,
    ensure_environment,
    ensure_gguf,
    ensure_openvino,
)
from peers.figures import busy_share, machine, write_between_markers
from peers.lifetime import unwind_when_terminated
from peers.protocol import Unsupported
from peers.worker import Worker, WorkerError
from peers.workloads import PEERS, VARIANTS, WORKLOADS, Prompts

RESULTS = BENCHMARKS / "results" / "engine_cpu.json"
PARTIAL_RESULTS = ROOT / "engine_cpu.json"
PAGE = BENCHMARKS.parent / "docs" / "benchmarks.md"
MODULES = {"llama.cpp": "llama_worker", "openvino": "openvino_worker", "transformers": "transformers_worker"}
EXTRAS = ("bandwidth", "quality")
LEAST_REPEATS = 5
# More than this of the processors' time used by others is said; it spoils engines whose threads spin most.
MAX_BUSY_SHARE = 0.05


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def names(allowed: tuple[str, ...]) -> Any:
    """An argparse type: a comma-separated list of some of `allowed`."""

    def read(text: str) -> list[str]:
        given = text.split(",")
        if unknown := set(given) - set(allowed):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}; there are: {', '.join(allowed)}")
        return [name for name in allowed if name in given]

    return read


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every_work, every_engine = (*WORKLOADS, *EXTRAS), (*VARIANTS, *PEERS)
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS)
    parser.add_argument("--only", type=names(every_work), default=list(every_work), metavar="WORK,...")
    parser.add_argument("--engines", type=names(every_engine), default=list(every_engine), metavar="NAME,...")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--per-family", type=int, default=100, help="held-out examples per family, for quality"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--pip-args", default="", help="given to pip, e.g. an index with CPU builds of torch")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the tables")
    given = parser.parse_args()
    given.is_whole = (
        given.only == list(every_work)
        and given.engines == list(every_engine)
        and given.repeats >= LEAST_REPEATS
    )
    return given


def start(engine: str, checkpoint: Path, given: argparse.Namespace) -> tuple[Worker, dict[str, Any]]:
    """A worker of that engine, not yet loaded, and what its load is asked with."""
    if engine in VARIANTS:
        options = {"model": str(checkpoint), "quantize": VARIANTS[engine]}
        return Worker(engine, Path(sys.executable), "penstock_worker", given.threads), options
    python = ensure_environment(engine, given.pip_args)
    model = checkpoint
    if engine == "llama.cpp":
        model = ensure_gguf(python, checkpoint)
    elif engine == "openvino":
        model = ensure_openvino(python, checkpoint)
    return Worker(engine, python, MODULES[engine], given.threads), {"model": str(model)}


def load_all(
    given: argparse.Namespace, stack: contextlib.ExitStack, result: dict[str, Any]
) -> dict[str, Worker]:
    """Every engine that can be measured, loaded; why others cannot is said and recorded."""
    checkpoint = ensure_checkpoint(MODELS)
    workers = {}
    for engine in given.engines:
        worker, options = start(engine, checkpoint, given)
        stack.enter_context(worker)
        try:
            loaded = worker.ask("load", threads=given.threads, **options)
        except Unsupported as error:
            say(f"{engine} is left out: {error}")
            result["left_out"][engine] = str(error)
            continue
        loaded["memory_loaded"] = loaded.pop("memory")
        worker.ask("forget_peak")
        result["engines"][engine] = loaded
        workers[engine] = worker
        say(f"{engine}: loaded; {loaded.get('compute', loaded['versions'])}")
    return workers


def measure(
    given: argparse.Namespace, workers: dict[str, Worker], reader: Worker, result: dict[str, Any]
) -> None:
    """All turns. Engines take turns within each work; who begins changes with the turn."""
    prompts = Prompts(given.seed)
    for turn in range(given.repeats + 1):
        if (busy := busy_share()) > MAX_BUSY_SHARE:
            say(f"others use {busy:.0%} of the processors: figures will be wrong")
        result["busy_before_turn"].append(round(busy, 3))
        if turn and "bandwidth" in given.only:
            found = reader.ask("bandwidth", threads=given.threads)["gb_per_s"]
            result["bandwidth_gb_per_s"].append(found)
        for name, work in WORKLOADS.items():
            if name not in given.only or (turn == 0 and work.warm_up is None):
                continue
            request = work.make(prompts) | ((work.warm_up or {}) if turn == 0 else {})
            order = [engine for engine in workers if engine in work.engines]
            shift = turn % max(len(order), 1)
            shown = []
            for engine in order[shift:] + order[:shift]:
                kept = work.keep(workers[engine].ask(work.op, **request))
                if turn:
                    result["work"].setdefault(name, {}).setdefault(engine, []).append(kept)
                shown.append(f"{engine} {next(iter(kept.values())):.4g}")
            say(f"{f'repeat {turn}/{given.repeats}' if turn else 'warm-up'} {name}: {', '.join(shown)}")
    for engine, worker in workers.items():
        result["engines"][engine]["memory_after"] = worker.ask("memory")


def judge(given: argparse.Namespace, worker: Worker, result: dict[str, Any]) -> None:
    """The built-in model, as it is and quantised."""
    for quantize in ("none", "int8", "int4"):
        try:
            found = worker.ask("quality", threads=1, quantize=quantize, per_family=given.per_family)
        except Unsupported as error:
            say(f"quality, {quantize}: {error}")
            continue
        result["quality"][quantize] = found
        say(f"quality, {quantize}: {found['accuracy']:.2f} %, perplexity {found['perplexity']:.4f}")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    result: dict[str, Any] = {
        "machine": machine(),
        "repeats": given.repeats,
        "threads": given.threads,
        "engines": {},
        "left_out": {},
        "busy_before_turn": [],
        "bandwidth_gb_per_s": [],
        "work": {},
        "quality": {},
    }
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Worker("reader", Path(sys.executable), "penstock_worker", given.threads))
        if set(given.only) - {"quality"}:
            measure(given, load_all(given, stack, result), reader, result)
        if "quality" in given.only:
            judge(given, reader, result)
    return result


def main() -> None:
    """Runs, writes and prints."""
    given = read_arguments()
    unwind_when_terminated()
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, usable[: given.threads])  # inherited by every worker
    try:
        result = run(given)
    except (PreparationError, WorkerError) as error:
        raise SystemExit(f"engine_cpu: {error}") from error
    result["bars"] = [bar.to_dict() for bar in bars(result)]
    path = RESULTS if given.is_whole else PARTIAL_RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = markdown(result)
    if given.is_whole:
        write_between_markers(PAGE, "engine_cpu", text)
    print(json.dumps(result, indent=2) if given.json else text)
    say(f"written to {path}")


if __name__ == "__main__":
    main()
