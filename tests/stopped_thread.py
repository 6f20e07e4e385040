"""Stops one thread of another process, wherever it is, as a hang in a driver or a kernel would.

Signals stop whole processes; a debugger's calls (ptrace, Linux) stop a single thread. Its process must be a
descendant of ours, which Linux allows unless debugging is forbidden altogether: then the call raises.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SEIZE, INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000  # waitpid: threads, too
TICKS = 5  # of CPU time, by which a thread shows that it is the busy one


def busy_thread(pid: int) -> int:
    """The first thread, but the main one, to use some CPU time from now on; something must keep it busy."""
    before = _ticks(pid)
    while True:
        for thread, ticks in _ticks(pid).items():
            if thread != pid and ticks >= before.get(thread, 0) + TICKS:
                return thread
        os.sched_yield()


@contextmanager
def stopped(thread: int) -> Iterator[None]:
    """Holds a thread where it is. Its process must have ended when the block does, however it ends."""
    _call(SEIZE, thread)
    _call(INTERRUPT, thread)
    assert os.WIFSTOPPED(os.waitpid(thread, WALL)[1])
    yield
    # A debugger has to take note of the end before anybody else can.
    _, status = os.waitpid(thread, WALL)
    assert not os.WIFSTOPPED(status)


def _ticks(pid: int) -> dict[int, int]:
    """CPU time by thread, in clock ticks."""
    ticks = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    return ticks


def _call(request: int, thread: int) -> None:
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    ptrace.restype = ctypes.c_long
    if ptrace(request, thread, None, None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"this system does not let a thread be stopped: {os.strerror(number)}")
