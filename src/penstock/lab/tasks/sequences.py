"""Text to repeat and numbers to count through: the tasks whose answers can be long."""

from penstock.lab.tasks.lexicon import NOUNS, distinct_words
from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single

_ECHO: Phrasings = {
    "en": (
        "Repeat: {text}",
        "Repeat after me: {text}",
        "Say exactly this: {text}",
        "Copy this text: {text}",
        "Please repeat the following: {text}",
        "Echo: {text}",
    ),
    "zh": ("重复：{text}", "跟我说：{text}", "请原样重复：{text}", "复述这句话：{text}", "抄写：{text}"),
}
_TIMES: Phrasings = {
    "en": (
        "Say {word} {n} times.",
        "Repeat the word {word} {n} times.",
        "Write {word} {n} times.",
        "Write the word {word} {n} times.",
    ),
    "zh": ("把{word}说{n}遍。", "把{word}写{n}遍。", "请把“{word}”重复{n}遍。", "{word}这个词写{n}次。"),
}
_COUNT: Phrasings = {
    "en": (
        "Count from {a} to {b}.",
        "Count from {a} to {b}",
        "Please count from {a} to {b}.",
        "List the numbers from {a} to {b}.",
        "Write all numbers from {a} to {b}.",
    ),
    "zh": ("从{a}数到{b}。", "请从{a}数到{b}", "列出{a}到{b}的所有整数。", "写出从{a}到{b}的数字。"),
}


def _echo(rng: Random, language: Language) -> Problem:
    words = distinct_words(rng, language, rng.randint(1, 7))
    if rng.random() < 0.2:
        words.insert(rng.randrange(len(words) + 1), str(rng.randint(0, 9999)))
    text = (" " if language == "en" else "").join(words)
    if rng.random() < 0.3:
        text += rng.choice(".!?" if language == "en" else "。！？")
    if language == "en" and rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return single(phrase(rng, _ECHO, language, text=text), text, f"echo:{text}")


def _times(rng: Random, language: Language) -> Problem:
    word = rng.choice(NOUNS[language])
    n = rng.randint(2, 5)
    text = (" " if language == "en" else "").join([word] * n)
    return single(phrase(rng, _TIMES, language, word=word, n=n), text, f"times:{word}:{n}")


def _count_up(rng: Random, language: Language) -> Problem:
    a = rng.choice((0, 1, 1, 1, rng.randint(2, 20), rng.randint(2, 99)))
    b = a + rng.randint(2, 9)
    text = ", ".join(str(n) for n in range(a, b + 1))
    return single(phrase(rng, _COUNT, language, a=a, b=b), text, f"count_up:{a}:{b}")


FAMILIES = (
    Family("repeat_text", _echo, weight=0.8),
    Family("repeat_times", _times, weight=0.7),
    Family("count_up", _count_up, weight=0.6),
)
