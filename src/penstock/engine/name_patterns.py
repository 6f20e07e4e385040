"""Finds names by regular expressions that come with an adapter and are not trusted. No torch here.

Python's matcher may need exponential time for an unlucky expression, and holds the interpreter's lock as
long: a whole server would stand still. So they are matched by a process of its own, this module run as a
script, which is ended when it takes too long.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

LIMIT_S = 10.0
MAX_PATTERN_LENGTH = 1000


def first_matches(
    patterns: Sequence[str], names: Sequence[str], limit_s: float = LIMIT_S
) -> list[int | None]:
    """For every name, the index of the first pattern that matches all of it; None if none does.

    Raises:
        ValueError: a pattern is no regular expression, is too long, or takes too long.
    """
    if any(len(pattern) > MAX_PATTERN_LENGTH for pattern in patterns):
        raise ValueError(f"a pattern is longer than {MAX_PATTERN_LENGTH} characters")
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps([patterns, names]),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"matching took longer than {limit_s:g} s; give plain names instead") from error
    if done.returncode:
        raise ValueError((done.stderr.strip() or "the process that matches patterns failed").splitlines()[-1])
    matches: list[int | None] = json.loads(done.stdout)
    return matches


def _main() -> None:
    patterns, names = json.load(sys.stdin)
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except (re.error, OverflowError, RecursionError) as error:
        sys.exit(f"a pattern is no regular expression: {error}")
    found = [next((i for i, one in enumerate(compiled) if one.fullmatch(name)), None) for name in names]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main()
