"""How many CPU threads a model computes on. Imports torch."""

from __future__ import annotations

import os

import torch

from penstock.engine.settings import EngineSettings

# Parameters below which a product is too small to share: two threads then wait for each other longer than
# they compute, and much longer where other processes use the cores.
ONE_THREAD_BELOW = 20_000_000


def choose_threads(settings: EngineSettings, num_parameters: int) -> int:
    """The threads that are set, else chosen from model and machine; tells torch."""
    threads = settings.threads or (1 if num_parameters < ONE_THREAD_BELOW else _num_cores())
    torch.set_num_threads(threads)
    return threads


def _num_cores() -> int:
    """The cores this process may use; macOS cannot say, so all of them there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
