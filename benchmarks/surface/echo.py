"""How much memory the log-probabilities of a long prompt take."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from penstock.engine.core import EngineCore
from penstock.engine.prompt_logprobs import PromptLogprobs
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence

PROMPT_TOKENS = 8000
MIB = 1 << 20


def resident() -> int:
    """Bytes of this process's memory that no file is behind."""
    for line in open("/proc/self/status", encoding="ascii"):  # noqa: SIM115 (closed with the process's loop)
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say RssAnon")


def peak_of(work: Callable[[], None]) -> int:
    """The most memory that is resident while `work` runs, looked at every few milliseconds."""
    highest, done = resident(), threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(highest, resident())


def added_mib(core: EngineCore) -> float:
    """MiB that `echo` with log-probabilities adds to a prompt's peak.

    Memory is taken as it is first written: before, the prompt is computed in as much of the KV pool as both
    runs together use.
    """
    rng = random.Random(5)
    tokens = [rng.randrange(1000, 150_000) for _ in range(PROMPT_TOKENS)]

    def run(salt: str, top: int | None = None) -> Callable[[], None]:
        def work() -> None:
            readout = None if top is None else PromptLogprobs(tokens, top)
            sampling = SamplingParams(max_tokens=0)
            core.add(Sequence(1, list(tokens), sampling, readout=readout, cache_salt=salt))
            while core.has_work:
                for output in core.step():
                    if output.error is not None:
                        raise output.error

        return work

    for salt in ("first", "second"):
        run(salt)()
    core.scheduler.tables.forget()
    plain = peak_of(run("plain"))
    return (peak_of(run("echo", 5)) - plain) / MIB
