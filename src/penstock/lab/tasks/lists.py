"""Lists of numbers and words: sorting, reversing, counting, extremes, picking and membership."""

from penstock.lab.tasks.lexicon import distinct_words, listing
from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single

_SORT: Phrasings = {
    "en": (
        "Sort these numbers: {items}",
        "Sort the numbers {items}.",
        "Sort {items}",
        "Sort {items} in ascending order.",
        "Put these numbers in order: {items}",
        "Arrange {items} from smallest to largest.",
        "Please sort these numbers from smallest to largest: {items}",
        "Order these numbers ascending: {items}",
    ),
    "zh": (
        "把这些数字排序：{items}",
        "请排序：{items}",
        "从小到大排列：{items}",
        "把{items}从小到大排序。",
        "请将下列数字按升序排列：{items}",
        "给这些数排个序：{items}",
    ),
}
_SORT_DESCENDING: Phrasings = {
    "en": (
        "Sort {items} in descending order.",
        "Sort these numbers from largest to smallest: {items}",
        "Sort these numbers in descending order: {items}",
        "Arrange {items} from largest to smallest.",
        "Order these numbers descending: {items}",
    ),
    "zh": (
        "从大到小排列：{items}",
        "把{items}从大到小排序。",
        "请将下列数字按降序排列：{items}",
        "把这些数字从大到小排序：{items}",
    ),
}
_REVERSE: Phrasings = {
    "en": (
        "Reverse this list: {items}",
        "Reverse the list: {items}",
        "Reverse the order of: {items}",
        "Reverse the list {items}.",
        "Write this list backwards: {items}",
        "Please reverse: {items}",
        "Put this list in reverse order: {items}",
    ),
    "zh": (
        "把这个列表倒过来：{items}",
        "反转列表：{items}",
        "请把下面的列表反转：{items}",
        "倒序写出：{items}",
        "将{items}倒过来写。",
        "把顺序颠倒：{items}",
    ),
}
_COUNT: Phrasings = {
    "en": (
        "How many items are in this list: {items}?",
        "How many words are there: {items}?",
        "How many items: {items}",
        "Count the items: {items}",
        "Count the items in this list: {items}",
        "How long is this list: {items}?",
    ),
    "zh": (
        "这个列表有几项：{items}？",
        "下面有几个词：{items}",
        "数一数有几项：{items}",
        "列表{items}里有几个元素？",
        "请数出项目的个数：{items}",
    ),
}
_EXTREME: Phrasings = {
    "en": (
        "What is the {largest} of {items}?",
        "What is the {largest} number in {items}?",
        "Which of these numbers is the {largest}: {items}?",
        "Find the {largest} number: {items}",
        "Give me the {largest} of these: {items}",
        "The {largest} of {items}?",
    ),
    "zh": (
        "{items}中{largest}的是哪个？",
        "哪个数{largest}：{items}？",
        "找出{largest}的数：{items}",
        "这些数里{largest}的是多少：{items}",
        "请问{items}里哪个{largest}？",
    ),
}
_PICK: Phrasings = {
    "en": (
        "What is the {nth} item of this list: {items}?",
        "What is the {nth} word in {items}?",
        "Which word is {nth} in this list: {items}?",
        "Give me the {nth} item: {items}",
        "Name the {nth} word of: {items}",
    ),
    "zh": (
        "列表{items}的{nth}项是什么？",
        "{items}中{nth}个词是什么？",
        "请给出{nth}项：{items}",
        "这个列表的{nth}个是什么：{items}",
    ),
}
_MEMBERSHIP: Phrasings = {
    "en": (
        "Is {word} in this list: {items}?",
        "Is {word} in the list {items}?",
        "Does this list contain {word}: {items}?",
        "Does the list {items} contain {word}?",
        "List: {items}. Is {word} in it?",
    ),
    "zh": (
        "{word}在这个列表里吗：{items}？",
        "列表{items}里有{word}吗？",
        "下面的列表包含{word}吗：{items}？",
        "列表：{items}。里面有{word}吗？",
    ),
}
_NTH = {"en": ("first", "second", "third", "fourth", "fifth"), "zh": ("第一", "第二", "第三", "第四", "第五")}
_LARGEST = {"en": ("largest", "biggest", "greatest"), "zh": ("最大",)}
_SMALLEST = {"en": ("smallest",), "zh": ("最小",)}
YES_NO: dict[Language, tuple[str, str]] = {"en": ("Yes", "No"), "zh": ("是", "否")}


def _numbers(rng: Random, low: int, high: int) -> list[int]:
    limit = 99 if rng.random() < 0.9 else 999
    return rng.sample(range(1 if limit == 99 else 10, limit + 1), rng.randint(low, high))


def _separator(rng: Random, language: Language) -> str:
    return ", " if language == "en" or rng.random() < 0.5 else "、"


def _sort(rng: Random, language: Language) -> Problem:
    numbers = _numbers(rng, 3, 4)
    separator = _separator(rng, language)
    descending = rng.random() < 0.3
    phrasings = _SORT_DESCENDING if descending else _SORT
    prompt = phrase(rng, phrasings, language, items=separator.join(map(str, numbers)))
    ordered = sorted(numbers, reverse=descending)
    content = "sort:" + ",".join(map(str, sorted(numbers)))
    return single(prompt, separator.join(map(str, ordered)), content)


def _reverse(rng: Random, language: Language) -> Problem:
    count = rng.randint(2, 5)
    if rng.random() < 0.25:
        words = [str(number) for number in rng.sample(range(1, 100), count)]
    else:
        words = distinct_words(rng, language, count)
    prompt = phrase(rng, _REVERSE, language, items=listing(words, language))
    return single(prompt, listing(words[::-1], language), "reverse:" + ",".join(words))


def _count(rng: Random, language: Language) -> Problem:
    words = distinct_words(rng, language, rng.randint(1, 7))
    prompt = phrase(rng, _COUNT, language, items=listing(words, language))
    return single(prompt, len(words), "count:" + ",".join(words))


def _extreme(rng: Random, language: Language) -> Problem:
    numbers = _numbers(rng, 3, 4)
    largest = rng.random() < 0.5
    word = rng.choice((_LARGEST if largest else _SMALLEST)[language])
    separator = _separator(rng, language)
    prompt = phrase(rng, _EXTREME, language, items=separator.join(map(str, numbers)), largest=word)
    content = "extreme:" + ",".join(map(str, sorted(numbers)))
    return single(prompt, max(numbers) if largest else min(numbers), content)


def _pick(rng: Random, language: Language) -> Problem:
    words = distinct_words(rng, language, rng.randint(3, 5))
    index = rng.randrange(min(5, len(words)))
    last = rng.random() < 0.15
    if last:
        index, nth = len(words) - 1, "last" if language == "en" else "最后一"
    else:
        nth = _NTH[language][index]
    prompt = phrase(rng, _PICK, language, items=listing(words, language), nth=nth)
    return single(prompt, words[index], "pick:" + ",".join(words))


def _membership(rng: Random, language: Language) -> Problem:
    words = distinct_words(rng, language, rng.randint(3, 5))
    present = rng.random() < 0.5
    word = rng.choice(words[:-1]) if present else words[-1]
    items = words[:-1]
    prompt = phrase(rng, _MEMBERSHIP, language, items=listing(items, language), word=word)
    content = f"member:{word}:" + ",".join(items)
    return single(prompt, YES_NO[language][0 if present else 1], content)


FAMILIES = (
    Family("sort_numbers", _sort, weight=2.0),
    Family("reverse_list", _reverse, weight=1.2),
    Family("count_items", _count),
    Family("extreme_number", _extreme),
    Family("pick_item", _pick, weight=1.2),
    # Practice: at this size the model stays near chance on it.
    Family("membership", _membership, weight=1.2, scored=False),
)
