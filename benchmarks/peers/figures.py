"""Medians, ranges and tables, and the description of the machine: what the long benchmarks' reports share."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """A demand: `values`, one per repeat, whose median must be at least (or at most) `bound`."""

    work: str
    demand: str
    bound: float
    values: tuple[float, ...]
    is_least: bool = True
    digits: int = 2

    @property
    def is_met(self) -> bool:
        """True if the median is on the right side."""
        median = statistics.median(self.values)
        return median >= self.bound if self.is_least else median <= self.bound

    def row(self) -> list[str]:
        """Cells of the table of bars."""
        return [self.work, self.demand, summary(self.values, self.digits), "yes" if self.is_met else "**no**"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        median = statistics.median(self.values)
        return {"work": self.work, "demand": self.demand, "median": median, "is_met": self.is_met}


def summary(values: Sequence[float], digits: int | None = None) -> str:
    """median (min to max), with the digits that the median deserves if none are given."""
    median = statistics.median(values)
    if digits is None:
        digits = 0 if median >= 100 else 1 if median >= 10 else 2
    if len(values) == 1:
        return f"{median:,.{digits}f}"
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are at most, by the nearest rank."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """One ratio per repeat."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars_table(bars: Sequence[Bar]) -> str:
    """The demands with what was measured."""
    return table(["bar", "demand", "measured", "met"], [bar.row() for bar in bars])


def machine() -> dict[str, Any]:
    """The processor, its cores that this process may use, and the memory in GiB."""
    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    kib = int(Path("/proc/meminfo").read_text("ascii").split()[1])
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(kib / (1 << 20), 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def busy_share(seconds: float = 1.0) -> float:
    """The part of all processors' time that others use while this process sleeps."""

    def ticks() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    total, idle = ticks()
    time.sleep(seconds)
    total_then, idle_then = ticks()
    return 1 - (idle_then - idle) / max(total_then - total, 1)


def write_between_markers(page: Path, name: str, text: str) -> None:
    """Replaces what a page has between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    Raises:
        ValueError: the page lacks the markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found_begin, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{page} lacks the markers of {name}")
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}", encoding="utf-8")
