"""Whether a short review is positive or negative."""

from penstock.lab.tasks.lexicon import words
from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single

_ASK: Phrasings = {
    "en": (
        "Is this review positive or negative? {text}",
        "Is this review positive or negative: {text}",
        "What is the sentiment of this review? {text}",
        "Sentiment: {text}",
        "Classify the sentiment: {text}",
        "{text} Is this positive or negative?",
        "{text}\nPositive or negative?",
    ),
    "zh": (
        "这条评论是正面还是负面？{text}",
        "判断情感：{text}",
        "请判断这条评论的情感（正面或负面）：{text}",
        "{text}这是正面评价还是负面评价？",
        "下面的评价是正面的还是负面的：{text}",
    ),
}
_SUBJECTS: dict[Language, tuple[str, ...]] = {
    "en": words(
        "food,service,room,film,book,phone,hotel,coffee,concert,staff,camera,battery,screen,soup,"
        "music,story,breakfast,pizza,bed,game,laptop,museum,dress,keyboard,delivery,price,sound,view,"
        "chair,software"
    ),
    "zh": words(
        "食物,服务,房间,电影,书,手机,酒店,咖啡,音乐会,店员,相机,电池,屏幕,汤,音乐,故事,早餐,披萨,床,"
        "游戏,电脑,博物馆,裙子,键盘,快递,价格,声音,风景,椅子,软件"
    ),
}
_POSITIVE: dict[Language, tuple[str, ...]] = {
    "en": words(
        "great,excellent,wonderful,lovely,fantastic,amazing,perfect,very good,really good,superb,"
        "delightful,brilliant,outstanding,pleasant,beautiful,not bad at all,a joy,worth every cent"
    ),
    "zh": words(
        "很好,非常棒,太好了,很出色,令人满意,很不错,完美,特别好,让人惊喜,值得推荐,一流,很漂亮,非常舒服,好极了"
    ),
}
_NEGATIVE: dict[Language, tuple[str, ...]] = {
    "en": words(
        "terrible,awful,horrible,bad,very bad,really bad,disappointing,poor,dreadful,boring,useless,"
        "broken,not good,not good at all,a disaster,ugly,annoying,a waste of money"
    ),
    "zh": words(
        "很差,非常糟糕,太差了,很无聊,令人失望,不好,不怎么样,特别差,让人生气,不值得推荐,很难看,"
        "非常难受,糟透了,一塌糊涂"
    ),
}
_REVIEWS: Phrasings = {
    "en": (
        "The {subject} was {opinion}.",
        "The {subject} is {opinion}.",
        "I think the {subject} was {opinion}.",
        "We found that the {subject} was {opinion}!",
        "Honestly, the {subject} was {opinion}.",
        "The {subject} here is {opinion} and {more}.",
        "In the end the {subject} was {opinion}, even {more}.",
    ),
    "zh": (
        "{subject}{opinion}。",
        "这里的{subject}{opinion}。",
        "我觉得{subject}{opinion}。",
        "说实话，{subject}{opinion}！",
        "{subject}{opinion}，真的{more}。",
        "这次的{subject}{opinion}。",
    ),
}
_LOVE: Phrasings = {
    "en": ("I love the {subject}!", "I really enjoyed the {subject}.", "I will buy the {subject} again."),
    "zh": ("我很喜欢这个{subject}！", "{subject}让我很开心。", "下次还会选这个{subject}。"),
}
_HATE: Phrasings = {
    "en": (
        "I hate the {subject}!",
        "I did not enjoy the {subject}.",
        "I will never buy the {subject} again.",
    ),
    "zh": ("我很讨厌这个{subject}！", "{subject}让我很生气。", "下次再也不选这个{subject}了。"),
}
LABELS: dict[Language, tuple[str, str]] = {"en": ("positive", "negative"), "zh": ("正面", "负面")}


def review(rng: Random, language: Language) -> tuple[str, str, str]:
    """A short review, its label in the language, and the content."""
    positive = rng.random() < 0.5
    subject = rng.choice(_SUBJECTS[language])
    if rng.random() < 0.2:
        text = phrase(rng, _LOVE if positive else _HATE, language, subject=subject)
    else:
        opinions = (_POSITIVE if positive else _NEGATIVE)[language]
        opinion, more = rng.sample(opinions, 2)
        text = phrase(rng, _REVIEWS, language, subject=subject, opinion=opinion, more=more)
    return text, LABELS[language][0 if positive else 1], f"review:{text}"


def _sentiment(rng: Random, language: Language) -> Problem:
    text, label, content = review(rng, language)
    return single(phrase(rng, _ASK, language, text=text), label, content)


FAMILIES = (Family("sentiment", _sentiment),)
