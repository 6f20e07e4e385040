"""Questions whose answers stand in the prompt: yes or no, and looking up who has or is where."""

from penstock.lab.tasks.lexicon import COLOURS, NAMES, PLACES, THINGS, invented_word
from penstock.lab.tasks.lists import YES_NO
from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single

_COLOUR_FACT = {"en": "The {thing} is {colour}.", "zh": "{thing}是{colour}。"}
_COLOUR_QUESTION: Phrasings = {
    "en": (
        "{facts} Is the {thing} {colour}?",
        "{facts} Tell me, is the {thing} {colour}?",
        "Facts: {facts}\nIs the {thing} {colour}?",
    ),
    "zh": (
        "{facts}{thing}是{colour}吗？",
        "{facts}请问{thing}是{colour}的吗？",
        "已知：{facts}\n{thing}是{colour}吗？",
    ),
}
_COLOUR_LOOKUP: Phrasings = {
    "en": (
        "{facts} What colour is the {thing}?",
        "{facts} Which colour is the {thing}?",
        "Facts: {facts}\nWhat color is the {thing}?",
    ),
    "zh": (
        "{facts}{thing}是什么颜色？",
        "{facts}请问{thing}是什么颜色的？",
        "已知：{facts}\n{thing}是什么颜色？",
    ),
}
_HAS_FACT = {"en": "{name} has the {thing}.", "zh": "{name}有{thing}。"}
_HAS_QUESTION: Phrasings = {
    "en": ("{facts} Does {name} have the {thing}?", "Facts: {facts}\nDoes {name} have the {thing}?"),
    "zh": ("{facts}{name}有{thing}吗？", "已知：{facts}\n{name}有{thing}吗？"),
}
_WHO_LOOKUP: Phrasings = {
    "en": ("{facts} Who has the {thing}?", "Facts: {facts}\nWho has the {thing}?"),
    "zh": ("{facts}谁有{thing}？", "已知：{facts}\n谁有{thing}？"),
}
_WHAT_LOOKUP: Phrasings = {
    "en": ("{facts} What does {name} have?", "Facts: {facts}\nWhat does {name} have?"),
    "zh": ("{facts}{name}有什么？", "已知：{facts}\n{name}有什么？"),
}
_PLACE_FACT = {"en": "{name} is in the {place}.", "zh": "{name}在{place}。"}
_PLACE_QUESTION: Phrasings = {
    "en": ("{facts} Is {name} in the {place}?", "Facts: {facts}\nIs {name} in the {place}?"),
    "zh": ("{facts}{name}在{place}吗？", "已知：{facts}\n{name}在{place}吗？"),
}
_PLACE_LOOKUP: Phrasings = {
    "en": (
        "{facts} Where is {name}?",
        "Facts: {facts}\nWhere is {name}?",
        "{facts} In which room is {name}?",
    ),
    "zh": ("{facts}{name}在哪里？", "{facts}请问{name}在哪儿？", "已知：{facts}\n{name}在哪里？"),
}


def _people(rng: Random, language: Language, count: int) -> list[str]:
    names = rng.sample(NAMES[language], count)
    if rng.random() < 0.1:
        invented = invented_word(rng, language)
        names[rng.randrange(count)] = invented.capitalize()
    return names


def _pairs(rng: Random, language: Language) -> tuple[str, list[str], list[str]]:
    """A relation and two or three facts of it: subjects and what is said of each, all different."""
    relation, count = rng.choice(("colour", "has", "place")), rng.choice((2, 3, 3))
    if relation == "colour":
        return relation, rng.sample(THINGS[language], count), rng.sample(COLOURS[language], count)
    if relation == "has":
        return relation, _people(rng, language, count), rng.sample(THINGS[language], count)
    return relation, _people(rng, language, count), rng.sample(PLACES[language], count)


_FACT = {"colour": _COLOUR_FACT, "has": _HAS_FACT, "place": _PLACE_FACT}
_SLOTS = {"colour": ("thing", "colour"), "has": ("name", "thing"), "place": ("name", "place")}
_QUESTION = {"colour": _COLOUR_QUESTION, "has": _HAS_QUESTION, "place": _PLACE_QUESTION}
_LOOKUP = {"colour": _COLOUR_LOOKUP, "has": _WHAT_LOOKUP, "place": _PLACE_LOOKUP}


def _statement(relation: str, language: Language, subjects: list[str], values: list[str]) -> str:
    first, second = _SLOTS[relation]
    pattern = _FACT[relation][language]
    sentences = [
        pattern.format(**{first: subject, second: value})
        for subject, value in zip(subjects, values, strict=True)
    ]
    return (" " if language == "en" else "").join(sentences)


def _yes_no(rng: Random, language: Language) -> Problem:
    relation, subjects, values = _pairs(rng, language)
    facts = _statement(relation, language, subjects, values)
    index = rng.randrange(len(subjects))
    true = rng.random() < 0.5
    others = [value for value in values if value != values[index]]
    value = values[index] if true else rng.choice(others)
    first, second = _SLOTS[relation]
    slots = {"facts": facts, first: subjects[index], second: value}
    prompt = phrase(rng, _QUESTION[relation], language, **slots)
    return single(prompt, YES_NO[language][0 if true else 1], f"facts:{facts}")


def _lookup(rng: Random, language: Language) -> Problem:
    relation, subjects, values = _pairs(rng, language)
    facts = _statement(relation, language, subjects, values)
    index = rng.randrange(len(subjects))
    if relation == "has" and rng.random() < 0.5:
        prompt = phrase(rng, _WHO_LOOKUP, language, facts=facts, thing=values[index])
        return single(prompt, subjects[index], f"facts:{facts}")
    slots = {"facts": facts, _SLOTS[relation][0]: subjects[index]}
    return single(phrase(rng, _LOOKUP[relation], language, **slots), values[index], f"facts:{facts}")


FAMILIES = (
    # Practice: comparing the asked value with the stated one stays near chance at this size.
    Family("fact_check", _yes_no, weight=1.4, scored=False),
    Family("fact_lookup", _lookup, weight=1.3),
)
