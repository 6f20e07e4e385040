"""Questions about Penstock and about the model itself, small talk, and the honest answer to all the rest.

The answers are a closed set, so the held-out split keeps back wordings (see `closed`).
"""

import itertools

from penstock.lab.tasks.identity_phrasings import QUESTIONS, SMALL_TALK, Table
from penstock.lab.tasks.lexicon import COMMON_CHARACTERS, distinct_words, invented_word
from penstock.lab.tasks.out_of_scope import OUT_OF_SCOPE, TOPICS
from penstock.lab.tasks.task import LANGUAGES, Family, Language, Problem, Random, single, wording

FALLBACK: dict[Language, str] = {
    "en": (
        "I am a tiny demonstration model and cannot answer that. "
        "Try a sum, sorting or reversing a list, or a question about Penstock."
    ),
    "zh": (
        "我是一个很小的演示模型，回答不了这个。可以试试加减法、列表排序或倒序，或者问我关于 Penstock 的问题。"
    ),
}


def expand(pattern: str) -> list[str]:
    """All wordings of a pattern: "[a|b] c" gives "a c" and "b c"; an empty alternative is allowed."""
    parts: list[list[str]] = []
    for index, piece in enumerate(pattern.replace("]", "[").split("[")):
        parts.append(piece.split("|") if index % 2 else [piece])
    return [" ".join("".join(choice).split(" ")) for choice in itertools.product(*parts)]


def _wordings(table: Table) -> dict[Language, list[tuple[str, list[str]]]]:
    return {
        language: [
            (answer, [text for pattern in patterns for text in expand(pattern)])
            for answer, patterns in table[language].values()
        ]
        for language in LANGUAGES
    }


_QUESTIONS = _wordings(QUESTIONS)
_SMALL_TALK = _wordings(SMALL_TALK)


def _ask(rng: Random, topics: list[tuple[str, list[str]]]) -> tuple[str, str]:
    answer, wordings = rng.choice(topics)
    return rng.choice(wordings), answer


def _penstock(rng: Random, language: Language) -> Problem:
    prompt, answer = _ask(rng, _QUESTIONS[language])
    content = f"penstock:{wording(prompt)}"
    if language == "en" and rng.random() < 0.15:
        prompt = prompt.lower().rstrip("?")
    return single(prompt, answer, content)


def _small_talk(rng: Random, language: Language) -> Problem:
    prompt, answer = _ask(rng, _SMALL_TALK[language])
    content = f"small_talk:{wording(prompt)}"
    if language == "en" and rng.random() < 0.3:
        prompt = prompt.lower()
    if rng.random() < 0.4:
        prompt = prompt.rstrip("!.?！。？") + rng.choice(
            ("", "!", ".") if language == "en" else ("", "！", "。")
        )
    return single(prompt, answer, content)


def _calculation(rng: Random, language: Language) -> str:
    """A calculation that the model has not learnt: products, quotients and numbers of three digits."""
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    c, d = rng.randint(100, 9999), rng.randint(100, 9999)
    if language == "zh":
        return rng.choice(
            (
                f"{a}乘以{b}等于多少？",
                f"{a}乘{b}是多少？",
                f"{a}除以{b}等于多少？",
                f"{a}*{b}=?",
                f"{c}加{d}等于多少？",
                f"{c}+{d}=?",
            )
        )
    return rng.choice(
        (
            f"What is {a} times {b}?",
            f"What is {a} * {b}?",
            f"{a}*{b}=?",
            f"{a} x {b}",
            f"What is {a} divided by {b}?",
            f"{a} / {b}",
            f"What is {c} + {d}?",
            f"{c}+{d}=?",
            f"What is {c} - {d}?",
        )
    )


def _gibberish(rng: Random, language: Language) -> str:
    if language == "zh":
        return "".join(rng.choice(COMMON_CHARACTERS) for _ in range(rng.randint(2, 12)))
    words = distinct_words(rng, language, rng.randint(1, 5))
    words += [invented_word(rng, language) for _ in range(rng.randint(1, 4))]
    rng.shuffle(words)
    return " ".join(words)


def _fallback(rng: Random, language: Language) -> Problem:
    draw = rng.random()
    if draw < 0.12:
        prompt = _calculation(rng, language)
        content = f"fallback:{wording(prompt)}"
    elif draw < 0.25:
        prompt = _gibberish(rng, language)
        content = f"fallback:{wording(prompt)}"
    else:
        pattern = rng.choice(OUT_OF_SCOPE[language])
        slots = {name: rng.choice(values) for name, values in TOPICS[language].items()}
        prompt = pattern.format(**slots)
        content = f"fallback:{wording(prompt)}"
        if language == "en" and rng.random() < 0.2:
            prompt = prompt.lower().rstrip("?.")
    return single(prompt, FALLBACK[language], content)


FAMILIES = (
    Family("penstock", _penstock, weight=1.4),
    Family("small_talk", _small_talk, weight=1.0),
    Family("fallback", _fallback, weight=1.0),
)
