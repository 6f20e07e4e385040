"""The training stream and the held-out suite, both generated from a seed.

Split: every exchange has a content, and a stable hash of it decides its side (`tasks.task.is_held_out`).
Training conversations contain no exchange with a held-out content, in any phrasing or language or at any
turn; a held-out example is one whose scored exchange has a held-out content.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.lab.tasks.lexicon import NOUNS, invented_word
from penstock.lab.tasks.registry import FAMILIES, SCORED
from penstock.lab.tasks.task import LANGUAGES, Example, Family, Language, Message, Problem, is_held_out

NEUTRAL_SYSTEM_PROMPTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "You are a helpful assistant.",
        "You are a helpful assistant. Answer briefly.",
        "You are tiny, a demonstration model.",
        "Be brief.",
        "You are a friendly assistant.",
        "Answer the question.",
    ),
    "zh": (
        "你是一个有用的助手。",
        "你是一个乐于助人的助手。",
        "请简短回答。",
        "你是 tiny，一个演示模型。",
        "回答问题。",
    ),
}
# How many problems a training conversation holds; a few hold many, so that later positions are trained too.
_PROBLEMS = (1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5)
_LONG, _LONG_SHARE = (8, 18), 0.02


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat to learn from: every assistant message in it is an exact answer."""

    messages: tuple[Message, ...]
    contents: tuple[str, ...]


def _messages(problem: Problem) -> Iterator[Message]:
    for exchange in problem.exchanges:
        yield {"role": "user", "content": exchange.prompt}
        yield {"role": "assistant", "content": exchange.answer}


def _neutral_system(rng: random.Random, language: Language) -> tuple[Message, ...]:
    if rng.random() < 0.6:
        return ()
    return ({"role": "system", "content": rng.choice(NEUTRAL_SYSTEM_PROMPTS[language])},)


def _training_problem(rng: random.Random, family: Family, language: Language) -> Problem:
    while True:
        problem = family.generate(rng, language)
        if not any(is_held_out(exchange.content) for exchange in problem.exchanges):
            return problem


def training_stream(seed: int, families: Sequence[Family] = FAMILIES) -> Iterator[Conversation]:
    """Endless training conversations; the same seed gives the same stream on every machine.

    Families are drawn by weight, languages evenly. A conversation chains up to eighteen problems, unless the
    first has its own system prompt, which the others would not obey.
    """
    rng = random.Random(seed)
    weights = [family.weight for family in families]
    while True:
        language = rng.choice(LANGUAGES)
        first = _training_problem(rng, rng.choices(families, weights)[0], language)
        problems = [first]
        if first.system is None:
            head = _neutral_system(rng, language)
            count = rng.randint(*_LONG) if rng.random() < _LONG_SHARE else rng.choice(_PROBLEMS)
            while len(problems) < count:
                if rng.random() < 0.15:
                    language = rng.choice(LANGUAGES)
                problem = _training_problem(rng, rng.choices(families, weights)[0], language)
                if problem.system is None:
                    problems.append(problem)
        else:
            head = ({"role": "system", "content": first.system},)
        messages = head + tuple(message for problem in problems for message in _messages(problem))
        contents = tuple(exchange.content for problem in problems for exchange in problem.exchanges)
        yield Conversation(messages, contents)


def copying_stream(seed: int) -> Iterator[Conversation]:
    """Endless conversations that copy long runs of words and numbers: what training starts with.

    A decoder must first learn to find an earlier token and go on from there (induction: Olsson et al.
    2022, arXiv:2209.11895). Most families need it, but their answers are a tenth of the tokens; here
    they are half, so it is learnt in hundreds of steps instead of thousands.
    """
    rng = random.Random(f"copying:{seed}")
    while True:
        language = rng.choice(LANGUAGES)
        text = rng.choice(_SEPARATORS[language]).join(
            _copied_word(rng, language) for _ in range(rng.randint(4, 24))
        )
        content = f"echo:{text}"
        if not is_held_out(content):
            prompt = rng.choice(_COPY_PROMPTS[language]) + text
            messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": text})
            yield Conversation(messages, (content,))


_SEPARATORS: dict[Language, tuple[str, ...]] = {"en": (" ", ", "), "zh": (" ", ", ", "、", "")}
_COPY_PROMPTS: dict[Language, tuple[str, ...]] = {
    "en": ("Repeat: ", "Copy this text: ", "Echo: "),
    "zh": ("重复：", "抄写：", "请原样重复："),
}


def _copied_word(rng: random.Random, language: Language) -> str:
    draw = rng.random()
    if draw < 0.25:
        return str(rng.randint(0, 999))
    return invented_word(rng, language) if draw < 0.5 else rng.choice(NOUNS[language])


def held_out_suite(
    seed: int, per_family: int, families: Sequence[Family] = SCORED, history: float = 0.25
) -> list[Example]:
    """The held-out examples: `per_family` of each family, half of them in each language, no two alike.

    `history` is the share of examples that follow one earlier, unrelated problem in the same conversation.
    The suite depends on the seed and per family only: a family's examples are the same whichever other
    families are asked for.
    """
    suite: list[Example] = []
    for family in families:
        rng = random.Random(f"held-out:{seed}:{family.name}")
        seen: set[str] = set()
        while len(seen) < per_family:
            language = LANGUAGES[len(seen) % len(LANGUAGES)]
            example = _held_out_example(rng, family, language, families=FAMILIES, history=history)
            key = repr(example.messages)
            if key not in seen:
                seen.add(key)
                suite.append(example)
    return suite


def _held_out_example(
    rng: random.Random, family: Family, language: Language, families: Sequence[Family], history: float
) -> Example:
    while True:
        problem = family.generate(rng, language)
        if is_held_out(problem.exchanges[-1].content):
            break
    head: tuple[Message, ...]
    if problem.system is not None:
        head = ({"role": "system", "content": problem.system},)
    else:
        head = _neutral_system(rng, language)
        if rng.random() < history:
            plain = [candidate for candidate in families if candidate.name != "system_prompt"]
            earlier = _training_problem(rng, rng.choice(plain), language)
            head += tuple(_messages(earlier))
    *messages, answer = (*head, *_messages(problem))
    contents = tuple(exchange.content for exchange in problem.exchanges)
    return Example(family.name, language, tuple(messages), answer["content"], contents)
