"""From serving_cpu.py's figures to its bars and its markdown."""

from __future__ import annotations

from typing import Any

from peers.figures import Bar, bars_table, ratios, summary, table

OURS, TUTORIAL = "penstock", "tutorial"
_MODES = {"poisson": "Poisson arrivals", "closed": "closed loop"}
_FIGURES = {
    "requests_per_s": "requests/s",
    "tokens_per_s": "answer tokens/s",
    "latency_p50_s": "latency P50, s",
    "latency_p95_s": "latency P95, s",
    "ttft_p50_s": "first of the answer P50, s",
    "ttft_p95_s": "first of the answer P95, s",
}

Result = dict[str, Any]


def column(result: Result, mode: str, server: str, figure: str) -> list[float]:
    """One figure of every repeat."""
    return [turn[figure] for turn in result["turns"][mode][server]]


def bars(result: Result) -> list[Bar]:
    """The demands, for both ways of asking."""
    found = []
    for mode, title in _MODES.items():
        for figure, work, demand, bound, is_least in (
            ("requests_per_s", "requests per second", "at least 10 x the tutorial server", 10.0, True),
            ("latency_p95_s", "P95 latency", "at most 0.2 x the tutorial server", 0.2, False),
        ):
            values = ratios(column(result, mode, OURS, figure), column(result, mode, TUTORIAL, figure))
            work = f"{work}, {result['users']} users, {title}"
            found.append(Bar(work, demand, bound, values, is_least, 2 if is_least else 3))
    return found


def markdown(result: Result) -> str:
    """The whole section."""
    box, versions = result["machine"], result["versions"]
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    counts = result["requests_per_turn"]
    shares = {
        figure: max(
            max(column(result, mode, server, figure)) for mode in _MODES for server in (OURS, TUTORIAL)
        )
        for figure in ("load_generator_cpu_share", "idle_server_cpu_share")
    }
    intro = (
        f"{result['repeats']} repeats, {result['users']} users, {counts[OURS]} requests per turn to Penstock "
        f"and {counts[TUTORIAL]} to the tutorial server, on {box['cores']} cores ({box['cpu']}), "
        f"Python {box['python']}; {listed}. Poisson arrivals came at {result['poisson_rate_per_s']:.2f} per "
        "second to both. The load generator took at most "
        f"{shares['load_generator_cpu_share']:.1%} of a core, the server not asked "
        f"{shares['idle_server_cpu_share']:.1%}."
    )
    rows = []
    for mode, title in _MODES.items():
        for figure, name in _FIGURES.items():
            both = [column(result, mode, server, figure) for server in (OURS, TUTORIAL)]
            rows.append([title, name, *(summary(values) for values in both), summary(ratios(*both))])
    head = ["users", "figure", "`penstock up`", "tutorial server", "ratio"]
    return "\n\n".join((intro, table(head, rows), bars_table(bars(result))))
