"""From engine_cpu.py's figures to its bars and its markdown."""

from __future__ import annotations

import statistics
from typing import Any

from peers.figures import Bar, bars_table, ratios, summary, table
from peers.workloads import OURS, PEERS, VARIANTS

MEMORY_ALLOWANCE_MB = 400
_TITLES = {
    OURS: "Penstock",
    "penstock-none": "Penstock, unquantised (bf16)",
    "penstock-int4": "Penstock, int4",
    "llama.cpp": "llama.cpp Q8_0",
    "openvino": "openvino-genai int8",
    "transformers": "transformers bf16",
}
_WORK = {
    "decode1": "decode, batch 1, tok/s",
    "decode8": "decode, batch 8, tok/s",
    "decode16": "decode, batch 16, tok/s",
    "prefill512": "prefill, 512 tokens, tok/s",
}
# (workload, peer, least ratio)
_RATIO_BARS = (
    ("decode1", "llama.cpp", 1.05),
    ("decode1", "openvino", 1.35),
    ("decode8", "openvino", 1.3),
    ("decode8", "llama.cpp", 3.0),
    ("decode16", "openvino", 1.6),
    ("decode16", "llama.cpp", 3.5),
    ("prefill512", "openvino", 1.2),
)

Result = dict[str, Any]


def column(result: Result, workload: str, engine: str, figure: str) -> list[float]:
    """One figure of every repeat; empty if it was not measured."""
    return [kept[figure] for kept in result["work"].get(workload, {}).get(engine, [])]


def bars(result: Result) -> list[Bar]:
    """Every demand of which both sides were measured."""
    found = []
    for workload, peer, least in _RATIO_BARS:
        ours = column(result, workload, OURS, "tokens_per_s")
        theirs = column(result, workload, peer, "tokens_per_s")
        if ours and theirs:
            work = _WORK[workload].removesuffix(", tok/s")
            demand = f"at least {least:g} x {_TITLES[peer]}"
            found.append(Bar(work, demand, least, ratios(ours, theirs)))
    if shared := column(result, "prefix2000", OURS, "ratio"):
        work = "second request sharing a 2,000-token prefix, TTFT"
        found.append(Bar(work, "at most 0.1 x the first", 0.1, tuple(shared), False, 3))
    if stall := column(result, "stall4000", OURS, "ratio"):
        work = "inter-token P99 while a 4,000-token prompt is prefilled"
        found.append(Bar(work, "at most 3 x its quiet value", 3.0, tuple(stall), False))
    return found + _memory_bars(result) + _quality_bars(result)


def _memory_bars(result: Result) -> list[Bar]:
    entry = result["engines"].get(OURS, {})
    if "memory_after" not in entry:
        return []
    held = (entry["weights_bytes"] + entry["kv_bytes"]) / (1 << 20)
    demand = f"at most weights + KV pool + {MEMORY_ALLOWANCE_MB} MB = {held + MEMORY_ALLOWANCE_MB:,.0f} MiB"
    return [
        Bar(name, demand, held + MEMORY_ALLOWANCE_MB, (entry[key]["peak"],), False, 0)
        for name, key in (
            ("highest resident memory while serving, MiB", "memory_after"),
            ("the same while loading (the mapped file counts), MiB", "memory_loaded"),
        )
    ]


def _quality_bars(result: Result) -> list[Bar]:
    quality = result.get("quality", {})
    if not {"none", "int8"} <= set(quality):
        return []
    plain, quantised = quality["none"], quality["int8"]
    lost = plain["accuracy"] - quantised["accuracy"]
    worse = (quantised["perplexity"] / plain["perplexity"] - 1) * 100
    return [
        Bar("int8 on the built-in model, accuracy lost, points", "at most 0.5", 0.5, (lost,), False),
        Bar("int8 on the built-in model, perplexity, % above float32", "at most 1", 1.0, (worse,), False, 3),
    ]


def _speed_table(result: Result) -> str:
    engines = [name for name in (*VARIANTS, *PEERS) if name in result["engines"]]
    rows = []
    for workload, title in _WORK.items():
        if workload in result["work"]:
            found = [column(result, workload, engine, "tokens_per_s") for engine in engines]
            rows.append([title, *(summary(values) if values else "" for values in found)])
    return table(["work", *(_TITLES[name] for name in engines)], rows)


def _roofline(result: Result) -> str:
    measured = result.get("bandwidth_gb_per_s")
    weights = result["engines"].get(OURS, {}).get("weights_bytes")
    if not measured or not weights:
        return ""
    bandwidth = statistics.median(measured)
    limit = bandwidth * 1e9 / weights
    text = (
        f"Two threads read memory at {summary(measured)} GB/s in the same run. Penstock's weights as it "
        f"holds them are {weights / 1e6:,.0f} MB; read once per step, that allows {limit:.1f} steps/s"
    )
    shares = []
    for batch in (1, 8, 16):
        if speeds := column(result, f"decode{batch}", OURS, "tokens_per_s"):
            steps = statistics.median(speeds) / batch
            shares.append(f"batch {batch}: {steps:.1f} steps/s, {steps / limit:.0%} of it")
    return text + (f" ({'; '.join(shares)})." if shares else ".")


def _agreement(result: Result) -> str:
    """That all compute the same model: the likeliest token after the 512 of each turn."""
    reference = column(result, "prefill512", "transformers", "token")
    if not reference:
        return ""
    shares = []
    for engine in result["engines"]:
        if engine != "transformers" and (tokens := column(result, "prefill512", engine, "token")):
            same = sum(a == b for a, b in zip(tokens, reference, strict=True))
            shares.append(f"{_TITLES[engine]} {same} of {len(reference)}")
    return f"Same first token as transformers in bf16 after the 512 (random weights): {', '.join(shares)}."


def _latency_table(result: Result) -> str:
    rows = []
    if first := column(result, "prefix2000", OURS, "first_s"):
        second = column(result, "prefix2000", OURS, "second_s")
        cells = [summary([s * 1e3 for s in times], 0) for times in (first, second)]
        rows.append(["TTFT, 2,032 tokens: first, then with 2,000 shared, ms", _TITLES[OURS], *cells])
    for engine in result["work"].get("stall4000", {}):
        for share in ("p50", "p99"):
            cells = [
                summary(column(result, "stall4000", engine, f"{kind}_{share}_ms"))
                for kind in ("quiet", "busy")
            ]
            name = f"inter-token {share.upper()}: alone, while 4,000 tokens are prefilled, ms"
            rows.append([name, _TITLES[engine], *cells])
    return table(["work", "engine", "before", "then"], rows) if rows else ""


def _memory_table(result: Result) -> str:
    rows = []
    for name, entry in result["engines"].items():
        if "memory_after" in entry:
            after, loaded = entry["memory_after"], entry["memory_loaded"]
            figures = (loaded["peak"], loaded["resident"], after["resident"], after["own"], after["peak"])
            rows.append([_TITLES[name], *(f"{mib:,.0f}" for mib in figures)])
    head = ["resident memory, MiB", "highest while loading", "loaded", "at the end", "of that no file's"]
    return table([*head, "highest while serving"], rows) if rows else ""


def _quality_table(result: Result) -> str:
    rows = [
        [name, f"{found['accuracy']:.2f} % of {found['examples']:,}", f"{found['perplexity']:.4f}"]
        for name, found in result.get("quality", {}).items()
    ]
    return table(["built-in model, float32, `quantize`", "right answers", "perplexity"], rows) if rows else ""


def markdown(result: Result) -> str:
    """The whole section: what ran where, the tables, the bars."""
    box = result["machine"]
    versions = {"Python": box["python"]}
    for entry in result["engines"].values():
        versions |= entry["versions"]
    versions.pop("llama.cpp built with", None)
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    intro = (
        f"{result['repeats']} repeats on {result['threads']} threads of {box['cores']} cores ({box['cpu']}), "
        f"{listed}."
    )
    if OURS in result["engines"]:
        intro += f" Penstock computes with {result['engines'][OURS]['compute']}."
    demands = bars(result)
    parts = [
        intro,
        _speed_table(result) if result["work"] else "",
        _roofline(result),
        _agreement(result),
        _latency_table(result),
        _memory_table(result),
        _quality_table(result),
        bars_table(demands) if demands else "",
    ]
    return "\n\n".join(part for part in parts if part)
