"""Tries in a process of its own whether a grammar compiles at all within limits of time and memory.

llguidance bounds the work for regular expressions and rules, but not all of that for JSON schemas: a few
hundred bytes of `allOf` with patterns or multiples keep it busy for hours. A process can be ended.
"""

from __future__ import annotations

import subprocess
import sys

CPU_S = 2
WALL_S = 10.0
"""For a machine that is busy with other things; the time of the processor ends a trial before."""
MEMORY_BYTES = 1 << 30

# Whether the grammar is valid is asked again, with the model's vocabulary, where the answer is needed.
_TRIAL = """
import os, resource, sys, threading
from llguidance import LLMatcher, LLTokenizer
cpu, memory, stack = map(int, sys.argv[1:])
for kind, limit in ((resource.RLIMIT_CPU, cpu), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory)):
    try:
        resource.setrlimit(kind, (limit, limit))
    except (OSError, ValueError):
        pass  # not every system has each of them
threading.stack_size(stack)
def attempt():
    bytes_alone = LLTokenizer("byte")
    LLMatcher(bytes_alone, sys.stdin.buffer.read().decode(), log_level=0).compute_bitmask()
    os._exit(0)
thread = threading.Thread(target=attempt)
thread.start()
thread.join()
os._exit(1)
"""


def is_bounded(grammar: str, stack_bytes: int) -> bool:
    """True if llguidance is done with `grammar` in time, valid or not. Blocks, as a rule for 50 ms.

    Raises:
        OSError: no process can be started.
    """
    limits = (CPU_S, MEMORY_BYTES, stack_bytes)
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL, *map(str, limits)],
            input=grammar.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return trial.returncode == 0
