"""Problems of several turns: recalling what was said earlier, and going on from the last answer."""

from penstock.lab.tasks.arithmetic import ADDITION, SUBTRACTION, addition_content, operand
from penstock.lab.tasks.lexicon import COLOURS, NAMES, NOUNS, invented_word
from penstock.lab.tasks.task import Exchange, Family, Language, Phrasings, Problem, Random, phrase

_KINDS = ("name", "code", "colour", "word")
_TELL: dict[str, Phrasings] = {
    "name": {
        "en": (
            "My name is {value}.",
            "I am {value}.",
            "Hi, I'm {value}.",
            "Hello, my name is {value}.",
            "Call me {value}.",
        ),
        "zh": (
            "我叫{value}。",
            "我的名字是{value}。",
            "你好，我叫{value}。",
            "我是{value}。",
            "请叫我{value}。",
        ),
    },
    "code": {
        "en": (
            "My code is {value}.",
            "The code is {value}.",
            "Remember the code {value}.",
            "My number is {value}.",
        ),
        "zh": ("我的代码是{value}。", "请记住代码{value}。", "代码是{value}。", "我的号码是{value}。"),
    },
    "colour": {
        "en": (
            "My favourite colour is {value}.",
            "My favorite color is {value}.",
            "I like {value} best.",
            "I love the colour {value}.",
        ),
        "zh": ("我最喜欢的颜色是{value}。", "我最喜欢{value}。", "我喜欢的颜色是{value}。"),
    },
    "word": {
        "en": (
            "Remember the word {value}.",
            "The secret word is {value}.",
            "Please remember this word: {value}",
            "The password is {value}.",
        ),
        "zh": ("请记住这个词：{value}", "暗号是{value}。", "记住{value}这个词。", "密码是{value}。"),
    },
}
_NOTED: dict[str, dict[Language, str]] = {
    "name": {"en": "Nice to meet you, {value}!", "zh": "很高兴认识你，{value}！"},
    "code": {"en": "Noted.", "zh": "记住了。"},
    "colour": {"en": "Noted.", "zh": "记住了。"},
    "word": {"en": "Noted.", "zh": "记住了。"},
}
_RECALL: dict[str, Phrasings] = {
    "name": {
        "en": (
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you remember my name?",
            "Tell me my name.",
        ),
        "zh": ("我叫什么名字？", "我叫什么？", "我是谁？", "你还记得我的名字吗？", "说出我的名字。"),
    },
    "code": {
        "en": (
            "What is the code?",
            "What was my code?",
            "Which code did I give you?",
            "What is my number?",
            "Tell me the code.",
        ),
        "zh": ("代码是什么？", "我的代码是多少？", "我给你的代码是什么？", "我的号码是多少？"),
    },
    "colour": {
        "en": (
            "What is my favourite colour?",
            "What's my favorite color?",
            "Which colour do I like?",
            "Which colour do I like best?",
        ),
        "zh": ("我最喜欢什么颜色？", "我喜欢的颜色是什么？", "我喜欢哪种颜色？"),
    },
    "word": {
        "en": (
            "What is the word?",
            "What was the secret word?",
            "Which word did I tell you?",
            "What is the password?",
            "Repeat the word.",
        ),
        "zh": ("是哪个词？", "暗号是什么？", "我让你记住的词是什么？", "密码是什么？"),
    },
}
_ANSWER: dict[Language, str] = {"en": "Your name is {value}.", "zh": "你叫{value}。"}

_ADD_MORE: Phrasings = {
    "en": (
        "And add {b} to that.",
        "Add {b} to that.",
        "Now add {b}.",
        "Plus {b}?",
        "And plus {b}?",
        "Add {b} more.",
        "Then add {b}.",
    ),
    "zh": ("再加{b}呢？", "再加上{b}。", "加{b}呢？", "然后加{b}。", "在这个基础上加{b}。"),
}
_TAKE_AWAY: Phrasings = {
    "en": (
        "Subtract {b} from that.",
        "Now subtract {b}.",
        "Minus {b}?",
        "And minus {b}?",
        "Take {b} away.",
        "Then subtract {b}.",
    ),
    "zh": ("再减{b}呢？", "再减去{b}。", "减{b}呢？", "然后减{b}。", "在这个基础上减{b}。"),
}


def _value(rng: Random, kind: str, language: Language) -> str:
    if kind == "code":
        return str(rng.randint(10, 9999))
    if kind == "colour":
        return rng.choice(COLOURS[language])
    invented = rng.random() < 0.5
    if kind == "word":
        return invented_word(rng, language) if invented else rng.choice(NOUNS[language])
    return invented_word(rng, language).capitalize() if invented else rng.choice(NAMES[language])


def _recall(rng: Random, language: Language) -> Problem:
    """Tells one or two things, perhaps makes a sum in between, and asks for one of them."""
    kinds = rng.sample(_KINDS, rng.choice((1, 1, 2)))
    told = [(kind, _value(rng, kind, language)) for kind in kinds]
    content = "recall:" + ",".join(f"{kind}={value}" for kind, value in told)
    exchanges = [
        Exchange(
            phrase(rng, _TELL[kind], language, value=value),
            _NOTED[kind][language].format(value=value),
            content,
        )
        for kind, value in told
    ]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        exchanges.append(_sum(rng, language))
    kind, value = rng.choice(told)
    answer = _ANSWER[language].format(value=value) if kind == "name" else value
    exchanges.append(Exchange(phrase(rng, _RECALL[kind], language), answer, content))
    return Problem(tuple(exchanges))


def _sum(rng: Random, language: Language) -> Exchange:
    a, b = operand(rng), operand(rng)
    return Exchange(phrase(rng, ADDITION, language, a=a, b=b), str(a + b), addition_content(a, b))


def _follow_up(rng: Random, language: Language) -> Problem:
    """A sum or difference, then one or two steps that go on from the last answer."""
    a, b = operand(rng), operand(rng)
    if rng.random() < 0.6:
        running = a + b
        prompt = phrase(rng, ADDITION, language, a=a, b=b)
        exchanges = [Exchange(prompt, str(running), addition_content(a, b))]
    else:
        b, a = sorted((a, b))
        running = a - b
        prompt = phrase(rng, SUBTRACTION, language, a=a, b=b)
        exchanges = [Exchange(prompt, str(running), f"subtract:{a}:{b}")]
    for _ in range(rng.choice((1, 1, 2))):
        step = rng.choice((rng.randint(1, 9), rng.randint(1, 9), rng.randint(10, 50), 10, 20))
        if running + step <= 199 and (rng.random() < 0.6 or step > running):
            text, content = phrase(rng, _ADD_MORE, language, b=step), addition_content(running, step)
            running += step
        elif step <= running:
            text, content = phrase(rng, _TAKE_AWAY, language, b=step), f"subtract:{running}:{step}"
            running -= step
        else:
            break
        exchanges.append(Exchange(text, str(running), content))
    return Problem(tuple(exchanges))


FAMILIES = (
    Family("recall", _recall, weight=1.2),
    Family("follow_up", _follow_up, weight=1.6),
)
