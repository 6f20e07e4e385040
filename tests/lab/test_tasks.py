"""Task families: repeatable, bilingual, and right where they can be checked by other means."""

import itertools
import json
import random

import pytest

from penstock.lab.corpus import held_out_suite, training_stream
from penstock.lab.pretrain import TrainSettings
from penstock.lab.tasks.identity import expand
from penstock.lab.tasks.numerals import chinese_numeral, english_words
from penstock.lab.tasks.registry import BY_NAME, FAMILIES, LATE_FAMILIES, SCORED
from penstock.lab.tasks.task import LANGUAGES, Family, Language, is_held_out


def test_there_are_at_least_ten_families_with_unique_names() -> None:
    assert len(SCORED) >= 10
    assert len(BY_NAME) == len(FAMILIES) + len(LATE_FAMILIES)


@pytest.mark.parametrize("family", [*FAMILIES, *LATE_FAMILIES], ids=lambda family: family.name)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_family_is_a_function_of_its_random_state(family: Family, language: Language) -> None:
    first, second = ([family.generate(random.Random(seed), language) for seed in range(40)] for _ in range(2))
    assert first == second
    assert len({problem.exchanges[-1].prompt for problem in first}) > 10
    for problem in first:
        for exchange in problem.exchanges:
            assert exchange.prompt == exchange.prompt.strip()
            assert exchange.answer
            assert exchange.answer == exchange.answer.strip()
            assert "{" not in exchange.prompt.replace('{"', "")


@pytest.mark.parametrize("family", [*FAMILIES, *LATE_FAMILIES], ids=lambda family: family.name)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_family_has_both_sides_of_the_split(family: Family, language: Language) -> None:
    rng = random.Random(1)
    sides = [is_held_out(family.generate(rng, language).exchanges[-1].content) for _ in range(400)]
    assert 0 < sum(sides) < len(sides) / 2


def test_json_families_compare_values_and_text_families_compare_text() -> None:
    email = BY_NAME["email_to_json"]
    assert email.correct('{"email":"a@b.c"}', '{"email": "a@b.c"}')
    assert not email.correct('{"email": "a@b.cn"}', '{"email": "a@b.c"}')
    assert not email.correct("a@b.c", '{"email": "a@b.c"}')
    assert BY_NAME["addition"].correct(" 68\n", "68")
    assert not BY_NAME["addition"].correct("68.", "68")


@pytest.mark.parametrize(
    ("number", "english", "chinese"),
    [
        (0, "zero", "零"),
        (10, "ten", "十"),
        (12, "twelve", "十二"),
        (20, "twenty", "二十"),
        (99, "ninety-nine", "九十九"),
        (100, "one hundred", "一百"),
        (110, "one hundred ten", "一百一十"),
        (305, "three hundred five", "三百零五"),
        (342, "three hundred forty-two", "三百四十二"),
    ],
)
def test_numerals(number: int, english: str, chinese: str) -> None:
    assert english_words(number) == english
    assert chinese_numeral(number) == chinese


def test_numerals_are_distinct() -> None:
    assert len({english_words(number) for number in range(1000)}) == 1000
    assert len({chinese_numeral(number) for number in range(1000)}) == 1000


def test_patterns_expand_to_all_wordings() -> None:
    assert expand("[a|b] c[|!]") == ["a c", "a c!", "b c", "b c!"]


def test_answers_of_json_families_are_json() -> None:
    for name in ("email_to_json", "date_to_json", "person_to_json"):
        for example in held_out_suite(3, 20, [BY_NAME[name]]):
            assert isinstance(json.loads(example.answer), dict)


def test_train_and_held_out_do_not_intersect() -> None:
    suite = held_out_suite(seed=7, per_family=60)
    scored = {example.contents[-1] for example in suite}
    assert all(is_held_out(content) for content in scored)
    trained: set[str] = set()
    asked: set[tuple[str, ...]] = set()
    streams = [training_stream(seed=0)]
    streams += [training_stream(phase.seed, phase.families()) for phase in TrainSettings().later]
    for conversation in itertools.chain(*(itertools.islice(stream, 12_000) for stream in streams)):
        trained.update(conversation.contents)
        asked.add(tuple(message["content"] for message in conversation.messages))
    assert any(content.startswith("stated:") for content in trained)  # the late family takes part
    assert not trained & scored
    assert not any(is_held_out(content) for content in trained)
    assert not asked & {(*(m["content"] for m in e.messages), e.answer) for e in suite}


def test_the_training_stream_is_a_function_of_its_seed() -> None:
    first, second, other = (list(itertools.islice(training_stream(seed), 50)) for seed in (5, 5, 6))
    assert first == second
    assert first != other


def test_conversations_alternate_and_some_have_system_prompts_and_several_turns() -> None:
    conversations = list(itertools.islice(training_stream(seed=1), 500))
    systems = turns = 0
    for conversation in conversations:
        roles = [message["role"] for message in conversation.messages]
        systems += roles[0] == "system"
        body = roles[1:] if roles[0] == "system" else roles
        assert body == ["user", "assistant"] * (len(body) // 2)
        turns += len(body) > 2
        assert len(conversation.contents) == len(body) // 2
    assert systems > 100
    assert turns > 100


def test_the_suite_is_balanced_and_repeatable() -> None:
    suite = held_out_suite(seed=2, per_family=10)
    assert suite == held_out_suite(seed=2, per_family=10)
    assert len(suite) == 10 * len(SCORED)
    for family in SCORED:
        members = [example for example in suite if example.family == family.name]
        assert [sum(e.language == language for e in members) for language in LANGUAGES] == [5, 5]
        assert members == held_out_suite(seed=2, per_family=10, families=[family])
        assert all(example.messages[-1]["role"] == "user" for example in members)
