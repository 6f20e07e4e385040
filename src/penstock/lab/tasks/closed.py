"""Closed sets learnt by heart: a small dictionary, opposites, and days and months in order.

Their answers cannot be held out, so the held-out split keeps back wordings: a question that is asked in
the test is never asked in those words in training.
"""

from penstock.lab.tasks.lexicon import DICTIONARY, words
from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single, wording

_TO_CHINESE: Phrasings = {
    "en": (
        "What is {word} in Chinese?",
        "What is the Chinese word for {word}?",
        "How do you say {word} in Chinese?",
        "Translate {word} into Chinese.",
        "Translate '{word}' to Chinese",
        "Translate to Chinese: {word}",
        "{word} in Chinese, please.",
        "Give me the Chinese for {word}.",
    ),
    "zh": (
        "{word}用中文怎么说？",
        "{word}的中文是什么？",
        "把{word}翻译成中文。",
        "请翻译成中文：{word}",
        "英文单词{word}是什么意思？",
        "“{word}”的中文怎么说？",
    ),
}
_TO_ENGLISH: Phrasings = {
    "en": (
        "What is {word} in English?",
        "What is the English word for {word}?",
        "How do you say {word} in English?",
        "Translate {word} into English.",
        "Translate to English: {word}",
        "What does {word} mean?",
        "{word} in English, please.",
        "Give me the English for {word}.",
    ),
    "zh": (
        "{word}用英文怎么说？",
        "{word}的英文是什么？",
        "把{word}翻译成英文。",
        "请翻译成英文：{word}",
        "{word}的英语单词是什么？",
        "“{word}”用英语怎么说？",
    ),
}
_OPPOSITES: dict[Language, tuple[str, ...]] = {
    "en": words(
        "hot-cold,big-small,up-down,fast-slow,old-young,open-closed,day-night,light-dark,happy-sad,"
        "rich-poor,left-right,hard-soft,wet-dry,early-late,strong-weak,clean-dirty,long-short,"
        "high-low,full-empty,near-far,buy-sell,win-lose,begin-end,love-hate,true-false,inside-outside"
    ),
    "zh": words(
        "热-冷,大-小,上-下,快-慢,开-关,高-低,长-短,多-少,好-坏,黑-白,左-右,前-后,里-外,早-晚,强-弱,"
        "远-近,买-卖,输-赢,真-假,软-硬,干净-肮脏,高兴-难过,安静-吵闹,简单-复杂,安全-危险,相同-不同"
    ),
}
_ASK_OPPOSITE: Phrasings = {
    "en": (
        "What is the opposite of {word}?",
        "Give me the opposite of {word}.",
        "Opposite of {word}?",
        "Name the opposite of {word}.",
        "What's the opposite of '{word}'?",
        "Which word means the opposite of {word}?",
        "{word}: what is the opposite?",
        "Tell me the antonym of {word}.",
    ),
    "zh": (
        "{word}的反义词是什么？",
        "“{word}”的反义词是什么？",
        "请说出{word}的反义词。",
        "{word}的反义词？",
        "与{word}相反的词是什么？",
        "什么词和{word}意思相反？",
        "给出{word}的反义词。",
    ),
}
_DAYS: dict[Language, tuple[str, ...]] = {
    "en": words("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday"),
    "zh": words("星期一,星期二,星期三,星期四,星期五,星期六,星期日"),
}
_MONTHS: dict[Language, tuple[str, ...]] = {
    "en": words("January,February,March,April,May,June,July,August,September,October,November,December"),
    "zh": words("一月,二月,三月,四月,五月,六月,七月,八月,九月,十月,十一月,十二月"),
}
_NEXT: Phrasings = {
    "en": (
        "What {unit} comes {after} {start}?",
        "Which {unit} comes {after} {start}?",
        "Which {unit} is right {after} {start}?",
        "What is the {unit} {after} {start}?",
        "Name the {unit} {after} {start}.",
        "Tell me the {unit} {after} {start}.",
        "What {unit} is directly {after} {start}?",
    ),
    "zh": (
        "{start}的{after}一{unit}是什么？",
        "{start}的{after}一{unit}是哪{unit}？",
        "{start}{after}一{unit}是几？",
        "请问{start}的{after}一{unit}是什么？",
        "说出{start}的{after}一{unit}。",
        "哪一{unit}在{start}的{after}一{unit}？",
    ),
}
_DAYS_LATER: Phrasings = {
    "en": (
        "What day is {count} days {after} {start}?",
        "Which day is {count} days {after} {start}?",
        "Which day comes {count} days {after} {start}?",
        "{count} days {after} {start} is which day?",
        "Name the day {count} days {after} {start}.",
        "What day of the week is {count} days {after} {start}?",
    ),
    "zh": (
        "{start}的{count}天{after}是星期几？",
        "{start}{count}天{after}是星期几？",
        "请问{start}的{count}天{after}是哪天？",
        "{start}往{after}数{count}天是星期几？",
        "从{start}算起，{count}天{after}是星期几？",
    ),
}


def _dictionary(rng: Random, language: Language) -> Problem:
    english, chinese = rng.choice(DICTIONARY)
    if rng.random() < 0.5:
        prompt, answer = phrase(rng, _TO_CHINESE, language, word=english), chinese
    else:
        prompt, answer = phrase(rng, _TO_ENGLISH, language, word=chinese), english
    return single(prompt, answer, f"dictionary:{wording(prompt)}")


def _opposite(rng: Random, language: Language) -> Problem:
    pair = rng.choice(_OPPOSITES[language]).split("-")
    rng.shuffle(pair)
    prompt = phrase(rng, _ASK_OPPOSITE, language, word=pair[0])
    return single(prompt, pair[1], f"opposite:{wording(prompt)}")


def _calendar(rng: Random, language: Language) -> Problem:
    backwards = rng.random() < 0.5
    after = {"en": ("after", "before"), "zh": ("后", "前")}[language][backwards]
    if rng.random() < 0.4:
        months, index = _MONTHS[language], rng.randrange(12)
        unit = "month" if language == "en" else "个月"
        prompt = phrase(rng, _NEXT, language, unit=unit, after=after, start=months[index])
        return single(
            prompt, months[(index - 1 if backwards else index + 1) % 12], f"calendar:{wording(prompt)}"
        )
    days, index, count = _DAYS[language], rng.randrange(7), rng.choice((1, 1, 2, 3))
    if count == 1:
        unit = "day" if language == "en" else "天"
        prompt = phrase(rng, _NEXT, language, unit=unit, after=after, start=days[index])
    else:
        prompt = phrase(rng, _DAYS_LATER, language, count=count, after=after, start=days[index])
    answer = days[(index - count if backwards else index + count) % 7]
    return single(prompt, answer, f"calendar:{wording(prompt)}")


FAMILIES = (
    Family("dictionary", _dictionary, weight=1.2),
    Family("opposite", _opposite, weight=0.6),
    Family("calendar", _calendar, weight=1.0),
)
