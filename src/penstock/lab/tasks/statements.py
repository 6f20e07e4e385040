"""Yes or no by what the prompt states: somebody has, likes or does something, or does not."""

from penstock.lab.tasks.lexicon import NAMES, NOUNS
from penstock.lab.tasks.lists import YES_NO
from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single

_KINDS: dict[str, dict[Language, tuple[str, str, str]]] = {
    # What is stated, what is stated when it is not so, and the question.
    "has": {
        "en": (
            "{name} has the {thing}.",
            "{name} does not have the {thing}.",
            "Does {name} have the {thing}?",
        ),
        "zh": ("{name}有{thing}。", "{name}没有{thing}。", "{name}有{thing}吗？"),
    },
    "likes": {
        "en": (
            "{name} likes the {thing}.",
            "{name} does not like the {thing}.",
            "Does {name} like the {thing}?",
        ),
        "zh": ("{name}喜欢{thing}。", "{name}不喜欢{thing}。", "{name}喜欢{thing}吗？"),
    },
    "bought": {
        "en": (
            "{name} bought the {thing}.",
            "{name} did not buy the {thing}.",
            "Did {name} buy the {thing}?",
        ),
        "zh": ("{name}买了{thing}。", "{name}没买{thing}。", "{name}买{thing}了吗？"),
    },
    "ready": {
        "en": (
            "The {thing} of {name} is ready.",
            "The {thing} of {name} is not ready.",
            "Is the {thing} of {name} ready?",
        ),
        "zh": ("{name}的{thing}好了。", "{name}的{thing}还没好。", "{name}的{thing}好了吗？"),
    },
}
_FRAMES: Phrasings = {
    "en": ("{fact} {question}", "Facts: {fact}\n{question}", "{fact} Answer yes or no: {question}"),
    "zh": ("{fact}{question}", "已知：{fact}\n{question}", "{fact}请回答是或否：{question}"),
}


def _stated(rng: Random, language: Language) -> Problem:
    kind = rng.choice(tuple(_KINDS))
    stated, denied, question = _KINDS[kind][language]
    is_so = rng.random() < 0.5
    slots = {"name": rng.choice(NAMES[language]), "thing": rng.choice(NOUNS[language])}
    fact = (stated if is_so else denied).format(**slots)
    prompt = phrase(rng, _FRAMES, language, fact=fact, question=question.format(**slots))
    return single(prompt, YES_NO[language][0 if is_so else 1], f"stated:{fact}")


FAMILIES = (Family("yes_no_facts", _stated),)
