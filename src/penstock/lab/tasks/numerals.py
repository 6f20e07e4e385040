"""Whole numbers from 0 to 999 between digits and words, in English and in Chinese."""

from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_CHINESE_DIGITS = "零一二三四五六七八九"

_TO_ENGLISH: Phrasings = {
    "en": (
        "Write {n} in words.",
        "Write the number {n} in words.",
        "Spell out {n}.",
        "Spell out the number {n}.",
        "How do you write {n} in words?",
        "What is {n} in words?",
        "{n} in words, please.",
        "Write {n} as English words.",
    ),
    "zh": (
        "用英文写出{n}。",
        "{n}用英文怎么写？",
        "请用英文单词写出数字{n}。",
        "把{n}写成英文。",
        "数字{n}的英文是什么？",
        "{n}的英文怎么说？",
    ),
}
_FROM_ENGLISH: Phrasings = {
    "en": (
        "Write {words} in digits.",
        "Write the number {words} in digits.",
        "What is {words} in digits?",
        "Write '{words}' as a number.",
        "Convert {words} to digits.",
        "Which number is {words}?",
        '"{words}" in digits, please.',
    ),
    "zh": (
        "用数字写出 {words}。",
        "{words} 用数字怎么写？",
        "把英文 {words} 写成数字。",
        "英文 {words} 是哪个数字？",
        "请把 {words} 转换成数字。",
    ),
}
_TO_CHINESE: Phrasings = {
    "en": (
        "Write {n} in Chinese.",
        "Write {n} in Chinese characters.",
        "Write the number {n} in Chinese numerals.",
        "How do you write {n} in Chinese?",
        "What is {n} in Chinese?",
        "How do you say {n} in Chinese?",
    ),
    "zh": (
        "用中文写出{n}。",
        "{n}用中文怎么写？",
        "请用汉字写出数字{n}。",
        "把{n}写成中文数字。",
        "{n}的中文怎么说？",
        "用汉字写{n}。",
    ),
}
_FROM_CHINESE: Phrasings = {
    "en": (
        "Write {words} in digits.",
        "Which number is {words}?",
        "What number is {words}?",
        "Convert {words} to digits.",
        "Write the Chinese number {words} in digits.",
    ),
    "zh": (
        "用阿拉伯数字写出{words}。",
        "{words}用数字怎么写？",
        "把{words}写成数字。",
        "{words}是哪个数字？",
        "请把“{words}”转换成数字。",
        "中文数字{words}是多少？",
    ),
}


def english_words(number: int) -> str:
    """The English words of a number from 0 to 999: 342 is "three hundred forty-two"."""
    if number >= 100:
        hundreds = _ONES[number // 100] + " hundred"
        return hundreds if number % 100 == 0 else f"{hundreds} {english_words(number % 100)}"
    if number < 20:
        return _ONES[number]
    tens = _TENS[number // 10]
    return tens if number % 10 == 0 else f"{tens}-{_ONES[number % 10]}"


def chinese_numeral(number: int) -> str:
    """The Chinese numeral of a number from 0 to 999: 305 is 三百零五, 12 is 十二, 312 is 三百一十二."""
    hundreds, tens, ones = number // 100, number // 10 % 10, number % 10
    if number < 10:
        return _CHINESE_DIGITS[number]
    text = f"{_CHINESE_DIGITS[hundreds]}百" if hundreds else ""
    if tens:
        text += ("" if tens == 1 and not hundreds else _CHINESE_DIGITS[tens]) + "十"
    elif hundreds and ones:
        text += "零"
    return text + (_CHINESE_DIGITS[ones] if ones else "")


def _number(rng: Random) -> int:
    return rng.randint(0, 99) if rng.random() < 0.4 else rng.randint(100, 999)


def _to_english(rng: Random, language: Language) -> Problem:
    n = _number(rng)
    return single(phrase(rng, _TO_ENGLISH, language, n=n), english_words(n), f"english:{n}")


def _from_english(rng: Random, language: Language) -> Problem:
    n = _number(rng)
    return single(phrase(rng, _FROM_ENGLISH, language, words=english_words(n)), n, f"english:{n}")


def _to_chinese(rng: Random, language: Language) -> Problem:
    n = _number(rng)
    return single(phrase(rng, _TO_CHINESE, language, n=n), chinese_numeral(n), f"chinese:{n}")


def _from_chinese(rng: Random, language: Language) -> Problem:
    n = _number(rng)
    return single(phrase(rng, _FROM_CHINESE, language, words=chinese_numeral(n)), n, f"chinese:{n}")


FAMILIES = (
    Family("number_to_english", _to_english),
    Family("english_to_number", _from_english),
    Family("number_to_chinese", _to_chinese),
    Family("chinese_to_number", _from_chinese, weight=0.8),
)
