"""System prompts that steer: answer in words, in Chinese, with a marker, or act as an extractor."""

from penstock.lab.tasks import arithmetic, closed, lists
from penstock.lab.tasks.arithmetic import ADDITION, addition_content, operand
from penstock.lab.tasks.extraction import date_sentence, email_sentence
from penstock.lab.tasks.lexicon import DICTIONARY, invented_word
from penstock.lab.tasks.numerals import chinese_numeral, english_words
from penstock.lab.tasks.sentiment import review
from penstock.lab.tasks.task import Exchange, Family, Language, Phrasings, Problem, Random, phrase, wording

_IN_ENGLISH_WORDS: Phrasings = {
    "en": (
        "Answer in words, not in digits.",
        "Write every number in English words.",
        "Use words instead of digits.",
    ),
    "zh": ("用英文单词回答数字。", "请用英文单词写出每个数字。"),
}
_IN_CHINESE_NUMERALS: Phrasings = {
    "en": ("Answer with Chinese numerals.", "Write every number in Chinese characters."),
    "zh": ("用中文数字回答。", "请用汉字写数字，不要用阿拉伯数字。", "数字一律用汉字。"),
}
_END_WITH: Phrasings = {
    "en": (
        "End every answer with {marker}",
        "Always end your answer with {marker}",
        "Finish each reply with {marker}",
    ),
    "zh": ("每个回答都以{marker}结尾", "回答最后都要加上{marker}", "所有回答以{marker}结束"),
}
_BEGIN_WITH: Phrasings = {
    "en": ("Begin every answer with {marker}", "Always start your answer with {marker}"),
    "zh": ("每个回答都以{marker}开头", "回答前面都要加上{marker}"),
}
_ONLY_CHINESE: Phrasings = {
    "en": ("Answer only in Chinese.", "Always reply in Chinese.", "Your answers must be in Chinese."),
    "zh": ("只用中文回答。", "请始终用中文回答。"),
}
_ONLY_ENGLISH: Phrasings = {
    "en": ("Answer only in English.", "Always reply in English."),
    "zh": ("只用英文回答。", "请始终用英文回答。"),
}
_EXTRACT_EMAIL: Phrasings = {
    "en": (
        "You extract e-mail addresses. Answer in JSON.",
        "Extract the e-mail address from the user's text as JSON.",
    ),
    "zh": ("你负责提取邮箱，用JSON回答。", "从用户的文字中提取邮箱地址，以JSON回答。"),
}
_EXTRACT_DATE: Phrasings = {
    "en": ("You extract dates. Answer in JSON.", "Extract the date from the user's text as JSON."),
    "zh": ("你负责提取日期，用JSON回答。", "从用户的文字中提取日期，以JSON回答。"),
}
_CLASSIFY: Phrasings = {
    "en": ("Classify the user's text as positive or negative.", "You are a sentiment classifier."),
    "zh": ("你是情感分类器，只回答正面或负面。", "判断用户文字的情感：正面或负面。"),
}
_TRANSLATE: Phrasings = {
    "en": (
        "You translate English words into Chinese and Chinese words into English.",
        "You are a translator. Translate the user's word.",
    ),
    "zh": ("你是翻译，把用户的词译成另一种语言。", "把用户给的词翻译成中文或英文。"),
}
_MARKERS = (
    "[done]",
    "[end]",
    "(ok)",
    "***",
    "##",
    "OK",
    "meow",
    "over",
    "<END>",
    "完毕",
    "报告完毕",
    "喵",
    "好的",
)

_TWINS: dict[str, str] = {}
for _word in (
    lists.YES_NO,
    {"en": ("positive", "negative"), "zh": ("正面", "负面")},
    {"en": ("even", "odd"), "zh": ("偶数", "奇数")},
):
    _TWINS.update(zip(_word["en"], _word["zh"], strict=True))
_TWINS_BACK = {chinese: english for english, chinese in _TWINS.items()}

_PLAIN = {
    family.name: family
    for family in (*arithmetic.FAMILIES, *lists.FAMILIES, *closed.FAMILIES)
    if family.name
    in ("addition", "subtraction", "comparison", "extreme_number", "pick_item", "opposite", "count_items")
}


def _sums(rng: Random, language: Language, chinese: bool) -> tuple[Exchange, ...]:
    exchanges = []
    for _ in range(rng.choice((1, 1, 2))):
        a, b = operand(rng), operand(rng)
        answer = chinese_numeral(a + b) if chinese else english_words(a + b)
        exchanges.append(Exchange(phrase(rng, ADDITION, language, a=a, b=b), answer, addition_content(a, b)))
    return tuple(exchanges)


def _marked(rng: Random, language: Language, system_language: Language) -> Problem:
    marker = rng.choice(_MARKERS) if rng.random() < 0.6 else f"[{invented_word(rng, language)}]"
    ends = rng.random() < 0.7
    exchanges = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        family = _PLAIN[rng.choice(sorted(_PLAIN))]
        exchange = family.generate(rng, language).exchanges[0]
        answer = f"{exchange.answer} {marker}" if ends else f"{marker} {exchange.answer}"
        exchanges.append(Exchange(exchange.prompt, answer, exchange.content))
    system = phrase(rng, _END_WITH if ends else _BEGIN_WITH, system_language, marker=marker)
    return Problem(tuple(exchanges), system)


def _translated(rng: Random, language: Language, system_language: Language) -> Problem:
    """A question in one language whose answer is asked for in the other."""
    if rng.random() < 0.5:
        text, label, content = review(rng, language)
        ask = "Is this review positive or negative? " if language == "en" else "这条评论是正面还是负面？"
        exchange = Exchange(ask + text, label, content)
    else:
        families = {family.name: family for family in (*lists.FAMILIES, *arithmetic.FAMILIES)}
        family = families[rng.choice(("membership", "parity"))]
        exchange = family.generate(rng, language).exchanges[0]
    table, phrasings = (_TWINS, _ONLY_CHINESE) if language == "en" else (_TWINS_BACK, _ONLY_ENGLISH)
    answer = table[exchange.answer]
    return Problem(
        (Exchange(exchange.prompt, answer, exchange.content),), phrase(rng, phrasings, system_language)
    )


def _extractor(rng: Random, language: Language, system_language: Language) -> Problem:
    generate, phrasings = rng.choice(
        ((email_sentence, _EXTRACT_EMAIL), (date_sentence, _EXTRACT_DATE), (review, _CLASSIFY))
    )
    if generate is review:
        system_language = language
    exchanges = tuple(
        Exchange(text, answer, content)
        for text, answer, content in (generate(rng, language) for _ in range(rng.choice((1, 1, 2))))
    )
    return Problem(exchanges, phrase(rng, phrasings, system_language))


def _translator(rng: Random, system_language: Language) -> Problem:
    system = phrase(rng, _TRANSLATE, system_language)
    exchanges = []
    for _ in range(rng.choice((1, 1, 2))):
        pair = list(rng.choice(DICTIONARY))
        rng.shuffle(pair)
        exchanges.append(Exchange(pair[0], pair[1], f"translator:{pair[0]}:{wording(system)}"))
    return Problem(tuple(exchanges), system)


def _system_prompt(rng: Random, language: Language) -> Problem:
    other: Language = "zh" if language == "en" else "en"
    system_language = language if rng.random() < 0.8 else other
    kind = rng.choice(
        ("words", "numerals", "marked", "marked", "translated", "extractor", "extractor", "translator")
    )
    if kind == "words":
        return Problem(_sums(rng, language, chinese=False), phrase(rng, _IN_ENGLISH_WORDS, system_language))
    if kind == "numerals":
        return Problem(_sums(rng, language, chinese=True), phrase(rng, _IN_CHINESE_NUMERALS, system_language))
    if kind == "marked":
        return _marked(rng, language, system_language)
    if kind == "translated":
        return _translated(rng, language, system_language)
    if kind == "extractor":
        return _extractor(rng, language, system_language)
    return _translator(rng, system_language)


FAMILIES = (Family("system_prompt", _system_prompt, weight=2.2, scoring="json"),)
