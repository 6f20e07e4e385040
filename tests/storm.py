"""Clients that behave badly, drawn from a seed, and what they must leave behind: nothing.

`tests/end_to_end/test_storm.py` sends a few hundred of them, `benchmarks/storm.py` an hour of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import string
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from raw_client import RawClient, raw_client
from running_service import RunningService, listening_port

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CONTEXT = 512
NUM_CLIENTS = 28
# As many places as clients: one is refused only while the engine has yet to notice that another left.
ENGINE = {"max_model_len": CONTEXT, "max_sequences": 16, "max_waiting": 12, "max_batch_tokens": 64}
# No client waits longer, or something hangs.
LIMIT_S = 60
# What Python's pool for blocking work may add to the threads of a process, once for all.
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
# What a process may grow by after the first clients; allocators keep what they have had. The KV pool is
# committed as it is first used: of a few MB all is by then, and of a larger one the rest would count here.
MEMORY_MB = 24


def config(model: str, kv_cache_mb: int) -> dict[str, Any]:
    """What to serve: `model` under the name "stormy", with a KV pool too small for all clients together."""
    engine = ENGINE | {"model": model, "kv_cache_mb": kv_cache_mb}
    return {
        "server": {"port": 0},
        "log": {"level": "error"},
        "models": {"stormy": {"replicas": [{"engine": engine}]}},
    }


@dataclass(frozen=True)
class Census:
    """What a service holds at one moment; everything by process where that differs."""

    work: float
    """Requests, sequences, KV blocks held and upstream connections in use, all together."""
    num_blocks: float
    """KV blocks, whoever has them."""
    threads: dict[str, int]
    descriptors: dict[str, int]
    """Without idle connections between gateway and engine, of which there may be any number."""
    memory_mb: dict[str, int]
    """Resident."""


def leaks(before: Census, warm: Census, after: Census) -> list[str]:
    """What a storm left behind. `warm` is from after its first clients, from where memory counts."""
    found = []
    if after.work or after.num_blocks != before.num_blocks:
        found.append(f"work {after.work:g}, KV blocks {after.num_blocks:g} of {before.num_blocks:g}")
    for role in after.threads:
        if after.threads[role] > before.threads[role] + POOL_THREADS:
            found.append(f"threads of the {role}: {before.threads[role]} -> {after.threads[role]}")
        if after.descriptors[role] != before.descriptors[role]:
            found.append(
                f"descriptors of the {role}: {before.descriptors[role]} -> {after.descriptors[role]}"
            )
        if after.memory_mb[role] > warm.memory_mb[role] + MEMORY_MB:
            found.append(f"memory of the {role}: {warm.memory_mb[role]} -> {after.memory_mb[role]} MiB")
    return found


class Storm:
    """Random clients of one running service. The same seed gives the same clients, in any order."""

    def __init__(self, service: RunningService, port: int, seed: int) -> None:
        self._port = port
        self._seed = seed
        self._pids = {role: service.child(role) for role in ("gateway", "engine")}
        self._ports = {"gateway": port, "engine": listening_port(self._pids["engine"])}
        self.outcomes: Counter[str] = Counter()
        """How many clients of each kind there were, by what they saw."""

    async def rage(self, numbers: Iterator[int]) -> None:
        """Lets NUM_CLIENTS at a time do what the seed says, one for each number."""

        async def one_after_the_other() -> None:
            for number in numbers:
                rng = random.Random(f"{self._seed} {number}")
                behave = rng.choice(BEHAVIOURS)
                async with asyncio.timeout(LIMIT_S), raw_client(self._port) as client:
                    self.outcomes[f"{behave.__name__}: {await behave(client, rng)}"] += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(NUM_CLIENTS):
                tasks.create_task(one_after_the_other())

    async def ask(self) -> Any:
        """What a well-behaved client is answered, the same at any time."""
        request = {"model": "stormy", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
        async with asyncio.timeout(LIMIT_S), raw_client(self._port) as client:
            answer = await client.ask(COMPLETIONS, json.dumps(request).encode())
            assert answer.status == 200, answer.body
            return json.loads(answer.body)["choices"]

    async def census(self, is_calm: Callable[[Census], bool] = lambda census: census.work == 0) -> Census:
        """What the service holds, as soon as `is_calm` says so: a client that left is noticed later."""
        census = None
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    census = await self._count()
                    if is_calm(census):
                        return census
        except TimeoutError as error:
            raise AssertionError(f"the service does not come to rest: {census}") from error

    async def _count(self) -> Census:
        gateway, engine = await self._metrics("gateway"), await self._metrics("engine")
        blocks = {
            state: value for (name, *state), value in engine.items() if name == "penstock_engine_kv_blocks"
            for state in state
        }  # fmt: skip
        idle = gateway["penstock_upstream_connections", "idle"]
        busy = gateway["penstock_upstream_connections", "busy"]
        return Census(
            work=gateway["penstock_requests_running", "gateway"]
            + engine["penstock_requests_running", "engine"]
            + sum(value for (name, *_), value in engine.items() if name == "vllm:num_requests_running")
            + sum(value for (name, *_), value in engine.items() if name == "vllm:num_requests_waiting")
            + blocks["held"]
            + busy,
            num_blocks=sum(blocks.values()),
            threads={role: _entries(pid, "task") for role, pid in self._pids.items()},
            descriptors={role: _entries(pid, "fd") - int(idle + busy) for role, pid in self._pids.items()},
            memory_mb={role: _resident_mb(pid) for role, pid in self._pids.items()},
        )

    async def _metrics(self, role: str) -> dict[tuple[str, ...], float]:
        async with raw_client(self._ports[role]) as client:
            text = (await client.ask("/metrics", method="GET")).body.decode()
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def _entries(pid: int, folder: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{folder}").iterdir())


def _resident_mb(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) // 1024


def _request(rng: random.Random, **fields: Any) -> tuple[str, bytes]:
    """A path and a good request for it."""
    letters = rng.choice(["abc \n", string.ascii_letters])  # short words; one that was never seen before
    text = "".join(rng.choices(letters, k=rng.choice([1, 30, 250])))
    common = {
        "model": "stormy",
        "max_tokens": rng.choice([1, 5, 50, 200]),
        "temperature": rng.choice([0, 1]),
        "stop": rng.choice([None, ["a"], ["xyz", "bc"]]),
    }
    if rng.random() < 0.5:
        return COMPLETIONS, json.dumps(common | {"prompt": text} | fields).encode()
    messages = [{"role": "user", "content": text}]
    return CHAT, json.dumps(common | {"messages": messages} | fields).encode()


async def whole(client: RawClient, rng: random.Random) -> str:
    """Waits for an answer in one piece, or is told to come back later."""
    answer = await client.ask(*_request(rng))
    assert answer.status in (200, 429), answer
    assert (answer.status == 429) == bool(answer.values(b"retry-after"))
    return str(answer.status)


async def streamed(client: RawClient, rng: random.Random) -> str:
    """Reads a stream to its end."""
    answer = await client.ask(*_request(rng, stream=True))
    assert answer.status in (200, 429), answer
    assert answer.status == 429 or answer.body.endswith(b"data: [DONE]\n\n"), answer
    return str(answer.status)


async def leaves_in_mid_stream(client: RawClient, rng: random.Random) -> str:
    """Reads some pieces, then closes the connection."""
    await client.request(*_request(rng, stream=True, max_tokens=200, stop=None))
    head = await client.head()
    pieces = client.pieces()
    async with contextlib.aclosing(pieces):
        for _ in range(rng.randint(0, 10)):
            if await anext(pieces, None) is None:
                break
    client.leave()
    return str(head.status)


async def leaves_before_the_first_byte(client: RawClient, rng: random.Random) -> str:
    """Sends a request and does not wait for anything."""
    await client.request(*_request(rng, stream=rng.random() < 0.5))
    for _ in range(rng.choice([0, 1, 10, 100])):
        await asyncio.sleep(0)
    client.leave()
    return "gone"


async def leaves_while_asking(client: RawClient, rng: random.Random) -> str:
    """Promises more than it sends."""
    path, body = _request(rng)
    head = f"POST {path} HTTP/1.1\r\nhost: penstock\r\ncontent-length: {len(body) + 1}\r\n\r\n".encode()
    data = head + body
    client.writer.write(data[: rng.randint(1, len(data))])
    await asyncio.sleep(0)
    client.leave()
    return "gone"


async def asks_too_much(client: RawClient, rng: random.Random) -> str:
    """A prompt, or an answer, longer than the context."""
    fields = rng.choice([{"max_tokens": CONTEXT + 1}, {"prompt": "x" * CONTEXT}, {"prompt": "x" * 100_000}])
    request = {"model": "stormy", "prompt": "x", "stream": rng.random() < 0.5} | fields
    answer = await client.ask(COMPLETIONS, json.dumps(request).encode())
    assert (answer.status, json.loads(answer.body)["error"]["code"]) in (
        (400, "context_length_exceeded"),
        (429, "queue_full"),
    ), answer
    return str(answer.status)


async def talks_nonsense(client: RawClient, rng: random.Random) -> str:
    """Bytes that are no request, cut and changed ones, fields and models that do not exist."""
    path, good = _request(rng)
    at = rng.randrange(len(good))
    bad = rng.choice(
        [b"", b"{", b"\xff\xfe", b"[" * 1000, good[:at], json.dumps({"model": "stormy"}).encode(),
         json.dumps(json.loads(good) | {"temprature": 1}).encode(),
         json.dumps(json.loads(good) | {"model": "other"}).encode()]
    )  # fmt: skip
    answer = await client.ask(path, bad)
    assert answer.status in (400, 404), answer
    return str(answer.status)


Behaviour = Callable[[RawClient, random.Random], Awaitable[str]]
BEHAVIOURS: tuple[Behaviour, ...] = (
    whole,
    streamed,
    leaves_in_mid_stream,
    leaves_before_the_first_byte,
    leaves_while_asking,
    asks_too_much,
    talks_nonsense,
)
