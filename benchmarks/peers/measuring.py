"""What is measured of an engine, and how: the same code for every engine that can be stepped.

An engine is stepped: each step brings at most one token per sequence, and the time of a token is the end of
the step that brought it. Runs inside the workers; imports the standard library only.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from peers.protocol import Handler, forget_peak, memory

# Tokens that the first sequence of a batch may get before the last has its first.
_HEAD_START = 500


class Stepped(Protocol):
    """An engine with sequences of greedy decoding in it; no end token ends one."""

    def add(self, key: int, prompt: list[int], max_tokens: int) -> None:
        """A new sequence; it is computed from the next step on."""
        ...

    def step(self) -> dict[int, int]:
        """One step; the token of every sequence that got one, by key."""
        ...

    def cancel(self, key: int) -> None:
        """Ends a sequence."""
        ...


class Timed(Protocol):
    """An engine of which decoding and prefill can be timed."""

    def decode(self, prompts: list[list[int]], tokens: int) -> tuple[int, float]:
        """Tokens made while every sequence was decoding, `tokens` of each, and the seconds they took."""
        ...

    def first_token(self, prompt: list[int]) -> tuple[float, int]:
        """Seconds until the first token of a prompt in an idle engine, and the token."""
        ...


class Stepping:
    """Times a stepped engine."""

    def __init__(self, engine: Stepped) -> None:
        self.engine = engine
        self._next_key = 1

    def keys(self, count: int) -> list[int]:
        """Keys that were never used before."""
        self._next_key += count
        return list(range(self._next_key - count, self._next_key))

    def decode(self, prompts: list[list[int]], tokens: int) -> tuple[int, float]:
        """From the step in which the last sequence got its first token; nothing ends before it is over."""
        keys = self.keys(len(prompts))
        for key, prompt in zip(keys, prompts, strict=True):
            self.engine.add(key, prompt, tokens + _HEAD_START)
        not_begun = set(keys)
        while not_begun:
            not_begun.difference_update(self.engine.step())
        made = 0
        started = time.perf_counter()
        while made < len(keys) * tokens:
            found = self.engine.step()
            assert sorted(found) == keys, f"a step gave tokens to {sorted(found)} of {keys}"
            made += len(found)
        seconds = time.perf_counter() - started
        for key in keys:
            self.engine.cancel(key)
        return made, seconds

    def first_token(self, prompt: list[int]) -> tuple[float, int]:
        """See Timed."""
        [key] = self.keys(1)
        started = time.perf_counter()
        self.engine.add(key, prompt, 1)
        while not (found := self.engine.step()):
            pass
        seconds = time.perf_counter() - started
        return seconds, found[key]


def decode(engine: Timed, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Tokens per second while every sequence decodes."""
    made, seconds = engine.decode(prompts, tokens)
    return {"tokens_per_s": made / seconds, "tokens": made}


def prefill(engine: Timed, prompt: list[int]) -> dict[str, Any]:
    """Seconds until the first token of a prompt in an idle engine, and the token."""
    seconds, token = engine.first_token(prompt)
    return {"seconds": seconds, "tokens_per_s": len(prompt) / seconds, "token": token}


def shared_prefix(engine: Timed, first: list[int], second: list[int]) -> dict[str, float]:
    """Seconds to the first token of a request, and of a later one that begins with the same tokens."""
    return {"first_s": engine.first_token(first)[0], "second_s": engine.first_token(second)[0]}


def stall(
    stepping: Stepping, prompt: list[int], long: list[int], quiet_tokens: int
) -> dict[str, list[float]]:
    """Milliseconds between the tokens of a running sequence: alone, and while a long prompt is prefilled."""
    engine = stepping.engine
    runner, newcomer = stepping.keys(2)
    engine.add(runner, prompt, quiet_tokens + len(long) + 2)
    while runner not in engine.step():
        pass
    gaps: tuple[list[float], list[float]] = ([], [])
    last = time.perf_counter()
    is_added = is_answered = is_over = False
    while not is_over:
        if not is_added and len(gaps[0]) == quiet_tokens:
            engine.add(newcomer, long, 1)
            is_added = True
        found = engine.step()
        is_answered = is_answered or newcomer in found
        if runner in found:
            now = time.perf_counter()
            gaps[is_added].append((now - last) * 1e3)
            last = now
            is_over = is_answered
    engine.cancel(runner)
    return {"quiet_ms": gaps[0], "busy_ms": gaps[1]}


def handlers(timed: Timed) -> dict[str, Handler]:
    """What a worker with this engine answers."""
    found: dict[str, Handler] = {
        "decode": lambda **given: decode(timed, **given),
        "prefill": lambda **given: prefill(timed, **given),
        "shared_prefix": lambda **given: shared_prefix(timed, **given),
        "memory": memory,
        "forget_peak": forget_peak,
    }
    if isinstance(timed, Stepping):
        found["stall"] = lambda **given: stall(timed, **given)
    return found
