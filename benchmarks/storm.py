"""An hour of bad clients: cancels, disconnects, over-long requests, nonsense; nothing may be left of them.

Prints what `penstock up` holds once a minute, and at the end what was left behind; exit code 1 if anything
was. The suite runs a short version, tests/end_to_end/test_storm.py, with the same clients.

usage: python benchmarks/storm.py [--minutes 60] [--model builtin:tiny] [--kv-cache-mb 8] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from running_service import RunningService
from storm import Storm, config, leaks

REPORT_S = 60


async def rage_for(storm: Storm, numbers: itertools.count[int], seconds: float) -> None:
    """Lets clients come for so long, and waits for the last ones."""
    end = time.monotonic() + seconds
    await storm.rage(itertools.takewhile(lambda _: time.monotonic() < end, numbers))


async def run(service: RunningService, seed: int, minutes: float) -> list[str]:
    """The storm; what it left behind."""
    port = urlsplit(service.wait_announced()).port
    assert port is not None
    children, storm, numbers = service.children(), Storm(service, port, seed), itertools.count()
    expected = await storm.ask()
    before = warm = after = await storm.census()
    print("start", before)
    end = time.monotonic() + 60 * minutes
    while (left := end - time.monotonic()) > 0:
        await rage_for(storm, numbers, min(left, REPORT_S))
        after = await storm.census()
        warm = after if warm is before else warm
        print(f"{sum(storm.outcomes.values())} clients", after, flush=True)
    after = await storm.census(lambda now: now.work == 0 and now.descriptors == before.descriptors)
    print(*(f"{count:8} {outcome}" for outcome, count in sorted(storm.outcomes.items())), sep="\n")
    found = leaks(before, warm, after)
    if service.children() != children:
        found.append("a process was restarted")
    if '"level": "error"' in service.stderr:
        found.append("errors were logged")
    if await storm.ask() != expected:
        found.append("the answers have changed")
    return found


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--kv-cache-mb", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "penstock.yaml"
        path.write_text(json.dumps(config(arguments.model, arguments.kv_cache_mb)))
        with RunningService("up", "--config", str(path)) as service:
            found = asyncio.run(run(service, arguments.seed, arguments.minutes))
    print(*(found or ["nothing was left behind"]), sep="\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
