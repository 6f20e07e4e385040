"""The scoring contract."""

import json
from collections.abc import Sequence

import pytest

from penstock.lab.corpus import held_out_suite
from penstock.lab.evaluate import evaluate, wilson
from penstock.lab.tasks.registry import SCORED
from penstock.lab.tasks.task import Message

SUITE = held_out_suite(seed=11, per_family=4)
ANSWERS = {repr(example.messages): example.answer for example in SUITE}


def perfect(chats: Sequence[Sequence[Message]]) -> list[str]:
    return [ANSWERS[repr(tuple(chat))] for chat in chats]


def silent(chats: Sequence[Sequence[Message]]) -> list[str]:
    return ["" for _ in chats]


def test_a_perfect_answerer_scores_one_everywhere() -> None:
    report = evaluate(perfect, SUITE)
    assert report.overall.share == 1.0
    assert set(report.families) == {family.name for family in SCORED}
    assert set(report.languages) == {"en", "zh"}
    assert report.wrong == ()
    assert report.shortfalls() == []


def test_a_silent_answerer_scores_zero_and_is_told_why() -> None:
    report = evaluate(silent, SUITE)
    assert report.overall.right == 0
    assert len(report.wrong) == 4 * len(SCORED)
    assert len(report.shortfalls()) == 1 + len(SCORED)
    assert report.wrong[0].expected == SUITE[0].answer


def test_the_generated_suite_is_used_when_none_is_given() -> None:
    done: list[tuple[int, int]] = []
    report = evaluate(
        silent, per_family=3, seed=1, families=["addition", "recall"], batch_size=4,
        progress=lambda count, total: done.append((count, total)),
    )  # fmt: skip
    assert report.overall.total == 6
    assert done == [(4, 6), (6, 6)]


def test_a_report_is_plain_json() -> None:
    values = json.loads(json.dumps(evaluate(silent, SUITE).to_dict()))
    assert values["overall"]["total"] == len(SUITE)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown families: nonsense"):
        evaluate(silent, families=["nonsense"])
    with pytest.raises(ValueError, match="returned 0 answers"):
        evaluate(lambda chats: [], SUITE)


def test_wilson_interval() -> None:
    # Reference values: Newcombe (1998), table I, method 3.
    score = wilson(81, 263)
    assert (score.low, score.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    score = wilson(0, 20)
    assert (score.low, score.high) == (0.0, pytest.approx(0.1611, abs=5e-5))
    assert wilson(0, 0).high == 1.0
