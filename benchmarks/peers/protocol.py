"""The worker's end of the line: JSON requests on standard input, one JSON answer each on standard output.

Imports the standard library only: it runs inside every engine's own environment.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peers.lifetime import die_with_parent

MIB = 1 << 20
Handler = Callable[..., Any]


class Unsupported(Exception):
    """The engine lacks what was asked for; it is left out of the tables, with this message."""


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answers {"op": name, ...} with the handler of that name until standard input ends.

    An answer is {"ok": value}, {"unsupported": text} or {"error": traceback}. Whatever libraries print on
    standard output goes to standard error.
    """
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": handlers[request.pop("op")](**request)}
        except Unsupported as error:
            answer = {"unsupported": str(error)}
        except Exception:  # noqa: BLE001 (told to the other end)
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def memory() -> dict[str, float]:
    """This process's memory in MiB: resident now, of that its own not a file's, and the highest so far."""
    found = {}
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        key, _, value = line.partition(":")
        if key in ("VmRSS", "VmHWM", "RssAnon", "RssShmem"):
            found[key] = int(value.split()[0]) * 1024 / MIB
    own = found.get("RssAnon", 0.0) + found.get("RssShmem", 0.0)
    return {"resident": found["VmRSS"], "own": own, "peak": found["VmHWM"]}


def forget_peak() -> None:
    """Makes the highest resident memory start again from now."""
    Path("/proc/self/clear_refs").write_text("5")
