"""An engine that computes all it would compute and writes what it is told.

Random weights say nothing worth repeating. To see what speculation is worth on a text, the model's arithmetic
runs as always and its draws are replaced, position by position, by that text's tokens; so drafts are accepted
as often as they would be if the model had written it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from penstock.engine.core import EngineCore
from penstock.engine.sampler import Sampler
from penstock.engine.sampling import Masks, SamplingParams
from penstock.engine.sequence import Sequence as EngineSequence

ROOT = Path(__file__).parent.parent.parent
VOCABULARY = 8000
PROMPT_TOKENS = 500
ANSWER_TOKENS = 300


class Dictated:
    """A sampler that draws, and then gives the text's token."""

    def __init__(self, sampler: Sampler) -> None:
        self.inner = sampler
        self.tokens: Sequence[int] = ()
        """Of the sequence, from its position 0 on."""

    def __call__(
        self,
        logits: Tensor,
        params: Sequence[SamplingParams],
        positions: Sequence[int],
        masks: Masks | None = None,
    ) -> list[int | None]:
        """See Sampler."""
        self.inner(logits, params, positions, masks)
        return [self.tokens[position % len(self.tokens)] for position in positions]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the answer that is dictated."""

    prompt: list[int]
    answer: list[int]


def texts() -> dict[str, Text]:
    """By workload: an edit that repeats most of its prompt, prose that was not seen, and noise."""
    sources = sorted((ROOT / "src").rglob("*.py"))
    pages = sorted((ROOT / "docs").glob("*.md"))
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=VOCABULARY, show_progress=False, initial_alphabet=ByteLevel.alphabet())
    tokenizer.train([str(path) for path in (*sources, *pages)], trainer)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    code = (ROOT / "src/penstock/engine/scheduler.py").read_text(encoding="utf-8")
    code = code[code.index("class Scheduler") :]
    edited = code.replace("sequence", "request").replace("blocks", "pages").replace("plan", "schedule")
    prose = encode("\n\n".join(page.read_text(encoding="utf-8") for page in pages))
    rng = random.Random(3)
    noise = [rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS + ANSWER_TOKENS)]
    half = len(prose) // 2
    return {
        "edit": Text(encode(code)[: 2 * PROMPT_TOKENS], encode(edited)[:ANSWER_TOKENS]),
        "prose": Text(prose[:PROMPT_TOKENS], prose[half : half + ANSWER_TOKENS]),
        "noise": Text(noise[:PROMPT_TOKENS], noise[PROMPT_TOKENS:]),
    }


def seconds_per_token(core: EngineCore, dictated: Dictated, text: Text, draft_rows: int) -> float:
    """Of one answer after its prompt is computed, with drafts of up to that many rows."""
    core.limits = core.scheduler.limits = replace(core.limits, max_draft_rows=draft_rows)
    dictated.tokens = [*text.prompt, *text.answer]
    sampling = SamplingParams(max_tokens=len(text.answer), temperature=0.0)
    core.add(EngineSequence(1, list(text.prompt), sampling, cache_salt=str(time.perf_counter_ns())))
    count = 0
    started = 0.0
    while core.has_work:
        for output in core.step():
            if output.error is not None:
                raise output.error
            started = started or time.perf_counter()
            count += output.token is not None
    assert count == len(text.answer)
    return (time.perf_counter() - started) / (count - 1)
