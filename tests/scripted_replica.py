"""A replica whose model writes what a test tells it to: the real server and engine around a scripted pass."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from asgi_call import GUARD_S, Answer, Call
from byte_tokenizer import CHATML, IM_END, MERGES, byte_level, write_tokenizer
from penstock.asgi.drain import Drain
from penstock.asgi.settings import HttpLimits
from penstock.engine.adapter import Adapter
from penstock.engine.adapter_store import AdapterStore
from penstock.engine.compute import Compute
from penstock.engine.core import EngineCore
from penstock.engine.memory import MemoryPlan
from penstock.engine.plan import Limits, StepPlan
from penstock.engine.sampling import SamplingParams
from penstock.engine.service import EngineService
from penstock.replica.app import Replica
from penstock.replica.model import SamplingDefaults, ServedModel
from penstock.text.answer_format import AnswerFormat
from penstock.text.grammar import GrammarCompiler
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer

MODEL = "scripted"
BLOCK_SIZE = 4
COMPUTE = Compute(torch.device("cpu"), torch.float32, "float32", "float32")
END = 256 + len(MERGES) + 2  # <|im_end|>
FAIL = -1  # in a script: the step raises
Script = Callable[[str], Sequence[int]]


class ScriptedForward:
    """A ForwardPass that writes what `script` says for a prompt; past its end, exclamation marks.

    Once held by `hold`, a step begins only when `let` allows it.
    """

    def __init__(self, script: Script, tokenizer: Tokenizer) -> None:
        self._script = script
        self._tokenizer = tokenizer
        self.ran: list[list[int]] = []
        self.sampling: dict[int, SamplingParams] = {}
        self.adapters: dict[int, Adapter | None] = {}
        self._begun = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)
        self._is_held = False
        self._paused_at: int | None = None
        self._tell_paused: Callable[[], object] = lambda: None

    def hold(self) -> None:
        """From now on every step waits."""
        self._is_held = True

    def pause(self, step: int) -> asyncio.Event:
        """Holds from that step on, counted from 0; the event is set when it has come."""
        loop, reached = asyncio.get_running_loop(), asyncio.Event()
        self._paused_at = len(self.ran) + step
        self._tell_paused = lambda: loop.call_soon_threadsafe(reached.set)
        return reached

    def let(self, steps: int = 1000) -> None:
        """Allows this many steps."""
        self._allowed.release(steps)

    async def begun(self) -> None:
        """Waits until one more step has begun."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=GUARD_S)

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass."""
        if len(self.ran) == self._paused_at:
            self._is_held = True
            self._tell_paused()
        self.ran.append([chunk.sequence.id for chunk in plan.chunks])
        if self._is_held:
            self._begun.release()
            assert self._allowed.acquire(timeout=GUARD_S)
        rows = []
        for sequence in (chunk.sequence for chunk in plan.sampling_chunks):
            self.sampling[sequence.id] = sequence.sampling
            self.adapters[sequence.id] = sequence.adapter
            prompt = self._tokenizer.decode(sequence.tokens[: sequence.num_prompt_tokens])
            script = self._script(prompt)
            token = script[sequence.num_generated] if sequence.num_generated < len(script) else ord("!")
            if token == FAIL:
                raise RuntimeError("scripted failure: secret detail")
            rows.append(token)
        logits = torch.full((len(rows), self._tokenizer.vocab_size), -torch.inf)
        logits[torch.arange(len(rows)), torch.tensor(rows, dtype=torch.int64)] = 0.0
        return logits

    def logits(self, start: int, end: int) -> Tensor:
        """See StepView: of prompts, every token is as likely as any."""
        return torch.zeros(end - start, self._tokenizer.vocab_size)


class Desk:
    """A running scripted replica and a client of it."""

    def __init__(self, model: ServedModel, forward: ScriptedForward, limits: HttpLimits) -> None:
        self.model = model
        self.forward = forward
        self.core = model.service.core
        self.drain = Drain()
        self.application = Replica(model, limits, self.drain).application()
        self.num_sent: Counter[str] = Counter()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        pieces: Sequence[bytes] | None = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Call:
        """Begins a request; `body` is sent as JSON, else `pieces` as they are."""
        self.num_sent[path] += 1
        given = [json.dumps(body).encode()] if body is not None else pieces
        return Call(self.application, method, path, given, headers)

    def chat(self, content: str = "hi", **fields: Any) -> Call:
        """Begins a chat completion."""
        messages = [{"role": "user", "content": content}]
        return self.call("POST", "/v1/chat/completions", {"model": MODEL, "messages": messages, **fields})

    def complete(self, prompt: str = "hi", **fields: Any) -> Call:
        """Begins a text completion."""
        return self.call("POST", "/v1/completions", {"model": MODEL, "prompt": prompt, **fields})

    async def get(self, path: str) -> Answer:
        """A whole GET."""
        return await self.call("GET", path).answer()

    async def samples(self) -> dict[tuple[str, str, str], float]:
        """The counter of ended requests by (path, status, code), from the replica's own exposition."""
        text = (await self.get("/metrics")).body.decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        counts: Counter[tuple[str, str, str]] = Counter()
        for sample in families["penstock_requests"].samples:
            if sample.name.endswith("_total"):
                labels = sample.labels
                counts[labels["path"], labels["status"], labels["code"]] += sample.value
        return dict(counts)

    async def check_ends(self) -> None:
        """Asserts that every request so far ended exactly once."""
        counts: Counter[str] = Counter()
        for (path, _, _), value in (await self.samples()).items():
            counts[path] += value
        expected: Counter[str] = Counter()
        for path, count in self.num_sent.items():
            known = path.startswith(("/v1/", "/health", "/livez", "/readyz", "/metrics"))
            expected[path if known else "other"] += count
        expected["/metrics"] -= 1  # the exposition that is being read has not ended
        assert counts == expected


def write_replica(directory: Path, template: str | None = CHATML) -> Path:
    """The checkpoint folder's text side."""
    config = {"eos_token": IM_END} | ({} if template is None else {"chat_template": template})
    return write_tokenizer(byte_level(MERGES), directory, **config)


@contextlib.asynccontextmanager
async def replica(
    directory: Path,
    script: Script | Sequence[int],
    *,
    max_sequences: int = 8,
    max_requests: int = 200,
    max_model_len: int = 128,
    num_blocks: int = 128,
    limits: HttpLimits | None = None,
    kind: type[Tokenizer] = Tokenizer,
    clock: Callable[[], float] = time.perf_counter,
    adapters: AdapterStore | None = None,
) -> AsyncIterator[Desk]:
    """Serves; in the end every request must have ended once and every block be free."""
    tokenizer = kind(directory)
    template = ChatTemplate.of_checkpoint(directory, tokenizer)
    forward = ScriptedForward(script if callable(script) else lambda _: script, tokenizer)
    shape = Limits(max_sequences, 64, max_model_len)
    vocab_size = tokenizer.vocab_size
    core = EngineCore(forward, shape, num_blocks, BLOCK_SIZE, vocab_size=vocab_size, clock=clock)
    model = ServedModel(
        name=MODEL,
        created=1_700_000_000,
        tokenizer=tokenizer,
        template=template,
        grammars=GrammarCompiler(tokenizer, tokenizer.vocab_size),
        answers=AnswerFormat(tokenizer, None if template is None else template.tool_source),
        defaults=SamplingDefaults.of_checkpoint(directory),
        service=EngineService(core, max_requests),
        max_model_len=max_model_len,
        memory=MemoryPlan(COMPUTE, num_blocks, BLOCK_SIZE, max_model_len, 0, 1, 0),
        vocab_size=tokenizer.vocab_size,
        adapters=adapters or AdapterStore(MODEL, lambda folder: folder, max_loras=0),
    )
    desk = Desk(model, forward, limits or HttpLimits())
    model.service.start()
    try:
        yield desk
        forward.let()
        await desk.check_ends()
    finally:
        forward.let()
        await model.service.stop()
    core.scheduler.check()
    assert core.stats().num_held_blocks == 0
    assert not core.has_work
    assert desk.drain.num_running == 0
