"""Sums, differences and comparisons of small whole numbers."""

from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single

ADDITION: Phrasings = {
    "en": (
        "What is {a} + {b}?",
        "What is {a}+{b}?",
        "what is {a} + {b}",
        "What is {a} plus {b}?",
        "How much is {a} + {b}?",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "Compute {a} + {b}.",
        "Calculate {a}+{b}",
        "{a} + {b} = ?",
        "{a}+{b}=?",
        "{a} + {b}",
        "{a}+{b}",
        "What's {a} + {b}?",
        "What is the sum of {a} and {b}?",
        "Find the sum: {a} + {b}",
        "Please add {a} to {b}.",
        "Can you add {a} and {b}?",
    ),
    "zh": (
        "{a} + {b} 等于多少？",
        "{a}+{b}等于多少？",
        "{a}加{b}等于多少？",
        "{a}加{b}等于几？",
        "{a}加上{b}是多少？",
        "{a} + {b} = ?",
        "{a}+{b}=？",
        "计算 {a} + {b}。",
        "请计算{a}+{b}",
        "{a}与{b}的和是多少？",
        "{a}和{b}相加等于多少？",
        "请问{a}加{b}是多少？",
        "求{a}与{b}之和。",
    ),
}

SUBTRACTION: Phrasings = {
    "en": (
        "What is {a} - {b}?",
        "What is {a}-{b}?",
        "what is {a} - {b}",
        "What is {a} minus {b}?",
        "How much is {a} - {b}?",
        "How much is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Compute {a} - {b}.",
        "Calculate {a}-{b}",
        "{a} - {b} = ?",
        "{a}-{b}=?",
        "{a} - {b}",
        "What's {a} - {b}?",
        "Take {b} away from {a}.",
        "What is the difference between {a} and {b}?",
    ),
    "zh": (
        "{a} - {b} 等于多少？",
        "{a}-{b}等于多少？",
        "{a}减{b}等于多少？",
        "{a}减{b}等于几？",
        "{a}减去{b}是多少？",
        "{a} - {b} = ?",
        "计算 {a} - {b}。",
        "请计算{a}-{b}",
        "{a}与{b}的差是多少？",
        "请问{a}减{b}是多少？",
    ),
}

_COMPARISON: Phrasings = {
    "en": (
        "Which is {larger}, {a} or {b}?",
        "Which number is {larger}: {a} or {b}?",
        "Which one is {larger}, {a} or {b}?",
        "{a} or {b}: which is {larger}?",
        "Tell me which is {larger}: {a} or {b}.",
        "Of {a} and {b}, which is {larger}?",
    ),
    "zh": (
        "{a}和{b}哪个{larger}？",
        "{a} 和 {b} 哪个更{larger}？",
        "哪个数更{larger}，{a}还是{b}？",
        "{a}与{b}相比，哪个{larger}？",
        "请问{a}和{b}中哪个数{larger}？",
    ),
}
_LARGER = {"en": ("larger", "bigger", "greater"), "zh": ("大",)}
_SMALLER = {"en": ("smaller", "less"), "zh": ("小",)}

_PARITY: Phrasings = {
    "en": (
        "Is {n} even or odd?",
        "Is {n} odd or even?",
        "Is the number {n} even or odd?",
        "Even or odd: {n}",
        "Tell me if {n} is even or odd.",
    ),
    "zh": (
        "{n}是奇数还是偶数？",
        "{n} 是偶数还是奇数？",
        "数字{n}是奇数还是偶数？",
        "请问{n}是单数还是双数，即奇数还是偶数？",
        "奇数还是偶数：{n}",
    ),
}

_NEIGHBOUR: Phrasings = {
    "en": (
        "What number comes {after} {n}?",
        "Which number comes right {after} {n}?",
        "What comes {after} {n}?",
        "Name the number just {after} {n}.",
        "What is the number {after} {n}?",
    ),
    "zh": (
        "{n}的{after}一个数是多少？",
        "{n} {after}一个数是几？",
        "数字{n}的{after}一个整数是什么？",
        "请说出{n}的{after}一个数。",
    ),
}


def addition_content(a: int, b: int) -> str:
    """The content of a sum, the same whichever operand comes first."""
    return f"add:{min(a, b)}:{max(a, b)}"


def operand(rng: Random) -> int:
    """A number of at most two digits, one in five of one digit."""
    return rng.randint(0, 9) if rng.random() < 0.2 else rng.randint(10, 99)


def _addition(rng: Random, language: Language) -> Problem:
    a, b = operand(rng), operand(rng)
    return single(phrase(rng, ADDITION, language, a=a, b=b), a + b, addition_content(a, b))


def _subtraction(rng: Random, language: Language) -> Problem:
    b, a = sorted((operand(rng), operand(rng)))
    return single(phrase(rng, SUBTRACTION, language, a=a, b=b), a - b, f"subtract:{a}:{b}")


def _comparison(rng: Random, language: Language) -> Problem:
    a = rng.randint(1, 999) if rng.random() < 0.5 else rng.randint(1, 99)
    # Half of the pairs lie close together, so that more than the first digit must be read.
    b = a + rng.choice((-1, 1)) * rng.randint(1, 12) if rng.random() < 0.5 else rng.randint(1, 999)
    if b == a or b < 0:
        b = a + 7
    largest = rng.random() < 0.6
    word = rng.choice((_LARGER if largest else _SMALLER)[language])
    answer = max(a, b) if largest else min(a, b)
    prompt = phrase(rng, _COMPARISON, language, a=a, b=b, larger=word)
    return single(prompt, answer, f"compare:{min(a, b)}:{max(a, b)}")


def _parity(rng: Random, language: Language) -> Problem:
    n = rng.randint(0, 999)
    even, odd = ("even", "odd") if language == "en" else ("偶数", "奇数")
    return single(phrase(rng, _PARITY, language, n=n), odd if n % 2 else even, f"parity:{n}")


def _neighbour(rng: Random, language: Language) -> Problem:
    n = rng.randint(1, 999)
    step = rng.choice((1, -1))
    word = {("en", 1): "after", ("en", -1): "before", ("zh", 1): "后", ("zh", -1): "前"}[language, step]
    return single(phrase(rng, _NEIGHBOUR, language, n=n, after=word), n + step, f"neighbour:{n}:{step}")


FAMILIES = (
    Family("addition", _addition, weight=3.5),
    Family("subtraction", _subtraction, weight=3.0),
    Family("comparison", _comparison, weight=1.2),
    Family("parity", _parity, weight=0.5),
    Family("neighbour", _neighbour, weight=0.8),
)
