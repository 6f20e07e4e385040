"""The scoring contract: exact match on a held-out suite, per family, per language and overall.

Release gates, drift checks and compression all call :func:`evaluate` with their own :class:`Answerer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from penstock.lab.corpus import held_out_suite
from penstock.lab.tasks.registry import BY_NAME, SCORED
from penstock.lab.tasks.task import Example, Message

SUITE_SEED = 20_240
"""Seed of the suite that the model card's numbers were measured on."""

_MAX_SAMPLES = 5


class Answerer(Protocol):
    """Whatever answers chats: an engine in this process, a server behind a URL, a compressed model."""

    def __call__(self, chats: Sequence[Sequence[Message]], /) -> Sequence[str]:
        """The assistant's next message for every chat, in order, decoded greedily."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers of a group of examples, with the Wilson 95 % interval of the share."""

    right: int
    total: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class WrongSample:
    """An example that was answered wrongly."""

    family: str
    language: str
    messages: tuple[Message, ...]
    expected: str
    answer: str


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found. `wrong` holds at most five samples per family."""

    seed: int
    per_family: int
    overall: Score
    families: dict[str, Score]
    languages: dict[str, Score]
    wrong: tuple[WrongSample, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)

    def shortfalls(self, overall: float = 0.90, per_family: float = 0.75) -> list[str]:
        """The demands that the report misses, one line each; empty when all are met."""
        lines = [
            f"{name}: {score.share:.3f} is below {per_family:.2f}"
            for name, score in self.families.items()
            if score.share < per_family
        ]
        if self.overall.share < overall:
            lines.insert(0, f"overall: {self.overall.share:.3f} is below {overall:.2f}")
        return lines


def wilson(right: int, total: int) -> Score:
    """The share with its 95 % interval after Wilson (1927), which also holds near 0 and 1."""
    if total == 0:
        return Score(0, 0, 0.0, 0.0, 1.0)
    z = 1.959964
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return Score(right, total, share, max(0.0, centre - half), min(1.0, centre + half))


def evaluate(
    answerer: Answerer,
    suite: Sequence[Example] | None = None,
    per_family: int = 100,
    seed: int = SUITE_SEED,
    families: Iterable[str] | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Scores `answerer` on `suite`, or on the held-out suite of `seed` with `per_family` examples each.

    `families` narrows the generated suite to some families, by name. `progress(done, total)` is called
    after each batch of `batch_size` chats.

    Raises:
        ValueError: an unknown family, or an answerer that returns too few or too many answers.
    """
    if suite is None:
        suite = held_out_suite(seed, per_family, _chosen(families))
    answers: list[str] = []
    for start in range(0, len(suite), batch_size):
        batch = [example.messages for example in suite[start : start + batch_size]]
        found = answerer(batch)
        if len(found) != len(batch):
            raise ValueError(f"the answerer returned {len(found)} answers to {len(batch)} chats")
        answers.extend(found)
        if progress is not None:
            progress(len(answers), len(suite))
    return _report(suite, answers, seed, per_family)


def _chosen(names: Iterable[str] | None) -> Sequence[Any]:
    if names is None:
        return SCORED
    wanted = list(names)
    unknown = [name for name in wanted if name not in BY_NAME]
    if unknown:
        raise ValueError(f"unknown families: {', '.join(unknown)}; known: {', '.join(BY_NAME)}")
    return [BY_NAME[name] for name in wanted]


def _report(suite: Sequence[Example], answers: Sequence[str], seed: int, per_family: int) -> Report:
    right = [
        BY_NAME[example.family].correct(answer, example.answer)
        for example, answer in zip(suite, answers, strict=True)
    ]

    def scores(keys: Sequence[str]) -> dict[str, Score]:
        groups: dict[str, list[bool]] = {}
        for key, hit in zip(keys, right, strict=True):
            groups.setdefault(key, []).append(hit)
        return {key: wilson(sum(hits), len(hits)) for key, hits in groups.items()}

    wrong: list[WrongSample] = []
    counts: dict[str, int] = {}
    for example, answer, hit in zip(suite, answers, right, strict=True):
        if not hit and counts.get(example.family, 0) < _MAX_SAMPLES:
            counts[example.family] = counts.get(example.family, 0) + 1
            wrong.append(
                WrongSample(example.family, example.language, example.messages, example.answer, answer)
            )
    return Report(
        seed,
        per_family,
        wilson(sum(right), len(right)),
        scores([example.family for example in suite]),
        scores([example.language for example in suite]),
        tuple(wrong),
    )
