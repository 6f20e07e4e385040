"""Users of a completions server: who sends what when, and what each of them waited for.

At most `users` requests are out at a time, because a user who waits sends nothing. In a closed loop each
user asks again at once. With Poisson arrivals a request comes at its own time and takes the next free user;
if all wait for answers it is sent when one of them is free, and its latency counts from there: a server
that is too slow for the rate ends up in the closed loop, instead of showing an ever longer queue of the
client's.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from peers.figures import percentile
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Call, Pool

PROMPT_TOKENS = (16, 256)
ANSWER_TOKENS = (8, 64)
_TIMEOUT_S = 1800.0
_HEADERS = ((b"content-type", b"application/json"),)


@dataclass(frozen=True, slots=True)
class Request:
    """One question; its arrival is in seconds from the start, in units of the mean gap."""

    prompt: str
    max_tokens: int
    arrival: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What a user saw, in seconds from sending: the first of the answer, and all of it."""

    first_s: float
    whole_s: float
    tokens: int


def draw(seed: int, count: int, block: int, tokenizer: Path) -> list[Request]:
    """Requests drawn from the seed: the lengths of a block, then in each block these in another order.

    So the first block is as much work per request as all of them. Short prompts are the more frequent ones.
    """
    encoder = Tokenizer.from_file(str(tokenizer))
    rng = random.Random(seed)
    low, high = PROMPT_TOKENS
    lengths = [(low * (high / low) ** rng.random(), rng.randint(*ANSWER_TOKENS)) for _ in range(block)]
    requests: list[Request] = []
    arrival = 0.0
    while len(requests) < count:
        for prompt_tokens, answer_tokens in rng.sample(lengths, block):
            arrival += rng.expovariate(1.0)
            requests.append(Request(_text(rng, encoder, prompt_tokens), answer_tokens, arrival))
    return requests[:count]


def _text(rng: random.Random, encoder: Tokenizer, tokens: float) -> str:
    text = ""
    while len(encoder.encode(text).ids) < tokens:
        text += "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) + " "
    return text


async def _ask(pool: Pool, model: str, request: Request, is_streamed: bool) -> Reply:
    fields: dict[str, Any] = {
        "model": model,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": 0,
    }
    if is_streamed:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    call = Call("POST", "/v1/completions", _HEADERS, json.dumps(fields).encode())
    started = time.perf_counter()
    first, last = None, b""
    async with pool.request(call) as answer:
        while (piece := await answer.read()) is not None:
            first = first or time.perf_counter() - started
            last = last[-4096:] + piece
    whole = time.perf_counter() - started
    assert answer.status == 200, (answer.status, last)
    tokens = _completion_tokens(last)
    assert tokens == request.max_tokens, f"{tokens} tokens, not {request.max_tokens}"
    assert first is not None
    return Reply(first, whole, tokens)


def _completion_tokens(text: bytes) -> int:
    """The last usage in an answer or in the end of a stream."""
    found = text[text.rindex(b'"completion_tokens":') :].partition(b":")[2]
    return int(found.replace(b"}", b",").partition(b",")[0])


async def play(
    port: int, model: str, requests: Sequence[Request], users: int, rate: float | None, is_streamed: bool
) -> dict[str, float]:
    """Sends all requests and says how it went; `rate` is of Poisson arrivals, per second; None: closed."""
    settings = UpstreamSettings(first_byte_timeout_s=_TIMEOUT_S, gap_timeout_s=_TIMEOUT_S)
    pool = Pool("127.0.0.1", port, f"127.0.0.1:{port}", settings)
    replies: list[Reply] = []
    left = iter(requests)
    started = time.perf_counter()

    async def user() -> None:
        for request in left:
            if rate is not None:
                await asyncio.sleep(started + request.arrival / rate - time.perf_counter())
            replies.append(await _ask(pool, model, request, is_streamed))

    cpu = time.process_time()
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(users):
                tasks.create_task(user())
    finally:
        pool.close()
    seconds = time.perf_counter() - started
    return _summed(replies, seconds, time.process_time() - cpu)


def _summed(replies: Sequence[Reply], seconds: float, cpu_s: float) -> dict[str, float]:
    whole, first = [reply.whole_s for reply in replies], [reply.first_s for reply in replies]
    return {
        "requests": len(replies),
        "seconds": seconds,
        "requests_per_s": len(replies) / seconds,
        "tokens_per_s": sum(reply.tokens for reply in replies) / seconds,
        "latency_p50_s": percentile(whole, 0.5),
        "latency_p95_s": percentile(whole, 0.95),
        "ttft_p50_s": percentile(first, 0.5),
        "ttft_p95_s": percentile(first, 0.95),
        "load_generator_cpu_share": cpu_s / seconds,
    }
