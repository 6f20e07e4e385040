"""Time to the first token of a known prefix: in a cold engine, and in one that was restarted with a snapshot.

Serves the random checkpoint of engine_cpu.py with `penstock up`. In every repeat a new prefix is asked for
twice, each time as the first request of a fresh process: of one that has no snapshot, which writes one when
it is stopped, and of one that restores it. The two requests go on differently after the prefix. Cold and
restored take turns, and a ratio is taken within a repeat. That the second is a hit is read from its usage.

A whole run (at least 5 repeats) writes benchmarks/results/kv_restore.json; another .bench/kv_restore.json.

usage: python benchmarks/kv_restore.py [--repeats 5] [--prefix 2000] [--threads 2]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import string
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers.checkpoint import ensure_checkpoint
from peers.environments import BENCHMARKS, MODELS, ROOT, PreparationError
from peers.figures import (
    Bar,
    bars_table,
    busy_share,
    machine,
    ratios,
    summary,
    table,
    write_between_markers,
)
from peers.lifetime import unwind_when_terminated
from serving_cpu import Server
from tokenizers import Tokenizer

from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Call, Pool

RESULTS = BENCHMARKS / "results" / "kv_restore.json"
PAGE = BENCHMARKS.parent / "docs" / "benchmarks.md"
PARTIAL_RESULTS = ROOT / "kv_restore.json"
LEAST_REPEATS = 5
BOUND = 0.15
SUFFIX_TOKENS = 16
_HEADERS = ((b"content-type", b"application/json"),)


def text_of(rng: random.Random, encoder: Tokenizer, tokens: int) -> str:
    """Random words of about that many tokens."""
    text = ""
    while len(encoder.encode(text).ids) < tokens:
        text += "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) + " "
    return text


async def first_token(port: int, model: str, prompt: str) -> dict[str, float]:
    """Seconds to the first token of a prompt, through the gateway, and what the usage says."""
    fields = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": True}
    body = json.dumps(fields | {"stream_options": {"include_usage": True}}).encode()
    pool = Pool("127.0.0.1", port, f"127.0.0.1:{port}", UpstreamSettings())
    first, received = None, b""
    started = time.perf_counter()
    try:
        async with pool.request(Call("POST", "/v1/completions", _HEADERS, body)) as answer:
            while (piece := await answer.read()) is not None:
                first = first or time.perf_counter() - started
                received += piece
    finally:
        pool.close()
    assert answer.status == 200, (answer.status, received)
    assert first is not None
    usage = json.loads(received.split(b"data: ")[-2])["usage"]
    found = usage["prompt_tokens_details"]["cached_tokens"]
    return {"seconds": first, "prompt_tokens": usage["prompt_tokens"], "cached_tokens": found}


def one_process(config: Path, name: str, model: str, prompt: str) -> dict[str, float]:
    """Starts the service, asks once, stops it."""
    started = time.perf_counter()
    with Server(name, [sys.executable, "-m", "penstock", "up", "--config", str(config)], True) as server:
        seconds_to_serve = time.perf_counter() - started
        found = asyncio.run(first_token(server.port, model, prompt))
        asked = time.perf_counter()
    return found | {"seconds_to_serve": seconds_to_serve, "seconds_to_stop": time.perf_counter() - asked}


def measure(given: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """All repeats: for each a cold process and a restored one."""
    checkpoint = ensure_checkpoint(MODELS)
    encoder = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    snapshot, config = folder / "kv", folder / "penstock.yaml"
    engine = {"model": str(checkpoint), "threads": given.threads, "kv_cache_mb": 256}
    replicas = [{"engine": engine | {"kv_snapshot": str(snapshot)}}]
    settings = {"server": {"port": 0}, "models": {checkpoint.name: {"replicas": replicas}}}
    config.write_text(json.dumps(settings), encoding="utf-8")
    rng = random.Random(given.seed)
    turns: dict[str, list[dict[str, float]]] = {"cold": [], "restored": []}
    for turn in range(1, given.repeats + 1):
        prefix = text_of(rng, encoder, given.prefix)
        snapshot.unlink(missing_ok=True)
        for name, found in turns.items():
            prompt = prefix + text_of(rng, encoder, SUFFIX_TOKENS)
            found.append(one_process(config, f"kv-{name}", checkpoint.name, prompt))
            found[-1] |= {"snapshot_mib": snapshot.stat().st_size / (1 << 20), "busy": busy_share()}
            print(f"repeat {turn}/{given.repeats} {name}: {found[-1]}", file=sys.stderr)
    return turns


def main() -> None:
    """Runs, writes and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS)
    parser.add_argument("--prefix", type=int, default=2000, help="tokens, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    given = parser.parse_args()
    unwind_when_terminated()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    try:
        with tempfile.TemporaryDirectory() as folder:
            turns = measure(given, Path(folder))
    except PreparationError as error:
        sys.exit(str(error))
    seconds = {name: [turn["seconds"] for turn in found] for name, found in turns.items()}
    missed = [turn for turn in turns["restored"] if turn["cached_tokens"] < given.prefix - 16]
    bar = Bar(
        f"first token of {given.prefix} known tokens after a restart, against cold",
        f"at most {BOUND}x",
        BOUND,
        ratios(seconds["restored"], seconds["cold"]),
        is_least=False,
        digits=3,
    )
    result: dict[str, Any] = {"machine": machine(), "repeats": given.repeats, "turns": turns}
    path = RESULTS if given.repeats >= LEAST_REPEATS else PARTIAL_RESULTS
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result | {"bar": bar.to_dict()}, indent=2) + "\n", encoding="utf-8")
    figures = ("seconds", "cached_tokens", "seconds_to_serve", "seconds_to_stop", "snapshot_mib")
    rows = [[name, *(summary([turn[key] for turn in turns[name]]) for key in figures)] for name in turns]
    head = ["engine", "first token, s", "tokens found", "to serve, s", "to stop, s", "snapshot, MiB"]
    text = f"{table(head, rows)}\n\n{bars_table([bar])}"
    print(text)
    if path == RESULTS:
        write_between_markers(PAGE, "kv_restore", text)
    if missed:
        sys.exit(f"{len(missed)} requests after a restart did not find the prefix: the ratio means nothing")


if __name__ == "__main__":
    main()
