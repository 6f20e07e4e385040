"""How good the built-in model's answers are under given engine settings: exact match, and perplexity.

Perplexity is that of the right answers of the held-out suite, each with its end token, given their prompts.
It goes through the engine's own steps: what the runner returns is noted, then replaced so that the right
token is taken.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from penstock.engine.core import ForwardPass
from penstock.engine.plan import StepPlan
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from penstock.engine.settings import EngineSettings
from penstock.lab.answerers import EngineAnswerer
from penstock.lab.corpus import held_out_suite
from penstock.lab.evaluate import SUITE_SEED, evaluate
from penstock.lab.tasks.registry import SCORED
from penstock.lab.vocabulary import MESSAGE_END_ID
from penstock.replica.loading import load_model
from penstock.replica.model import ServedModel
from penstock.text.template import Turn


class _TeacherForcing:
    """A forward pass after which greedy sampling takes the right token; adds up what it cost."""

    def __init__(self, inner: ForwardPass, answers: dict[int, list[int]]) -> None:
        self.nats = 0.0
        self._inner = inner
        self._answers = answers

    def run(self, plan: StepPlan) -> Tensor:
        logits = self._inner.run(plan)
        right = torch.tensor(
            [self._answers[c.sequence.id][c.sequence.num_generated] for c in plan.sampling_chunks]
        )
        costs = torch.nn.functional.cross_entropy(logits.double(), right, reduction="sum")
        self.nats += float(costs)
        return torch.full_like(logits, -1e9).scatter_(1, right[:, None], 0.0)


def _perplexity(model: ServedModel, per_family: int) -> float:
    core, template = model.service.core, model.template
    assert template is not None
    answers: dict[int, list[int]] = {}
    prompts: dict[int, list[int]] = {}
    for key, example in enumerate(held_out_suite(SUITE_SEED, per_family, SCORED), start=1):
        prompts[key] = template.encode([Turn(turn["role"], turn["content"]) for turn in example.messages])
        answers[key] = [*model.tokenizer.encode(example.answer, add_special_tokens=False), MESSAGE_END_ID]
    forcing = core.runner = _TeacherForcing(core.runner, answers)
    for key, prompt in prompts.items():
        core.add(Sequence(key, prompt, SamplingParams(max_tokens=len(answers[key]), temperature=0.0)))
        while core.has_work and key % 64 == 0:
            _step(core)
    while core.has_work:
        _step(core)
    return math.exp(forcing.nats / sum(map(len, answers.values())))


def _step(core: Any) -> None:
    for output in core.step():
        if output.error is not None:
            raise output.error


def judge(settings: EngineSettings, per_family: int) -> dict[str, Any]:
    """Accuracy in percent and perplexity of the built-in model with these settings."""
    overall = evaluate(EngineAnswerer(settings), per_family=per_family).overall
    return {
        "accuracy": overall.share * 100,
        "examples": overall.total,
        "perplexity": _perplexity(load_model(settings, "tiny"), per_family),
    }
