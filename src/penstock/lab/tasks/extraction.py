"""Pulling an e-mail address, a date or a person out of a sentence into JSON."""

import datetime
import json

from penstock.lab.tasks.lexicon import NAMES, PLACES, THINGS, invented_word
from penstock.lab.tasks.task import Family, Language, Phrasings, Problem, Random, phrase, single

_ASK_EMAIL: Phrasings = {
    "en": (
        "Extract the e-mail address as JSON: {text}",
        "Extract the email as JSON: {text}",
        "Find the e-mail address and answer in JSON. {text}",
        "{text} Extract the e-mail address as JSON.",
        "{text}\nReturn the email address as JSON.",
        "Give me the e-mail address in this text as JSON: {text}",
    ),
    "zh": (
        "把邮箱地址提取为JSON：{text}",
        "请从下面的句子中提取邮箱，用JSON回答：{text}",
        "{text}请以JSON格式提取其中的电子邮箱。",
        "提取电子邮件地址（JSON）：{text}",
        "{text}\n用JSON给出邮箱地址。",
    ),
}
EMAIL_SENTENCES: Phrasings = {
    "en": (
        "Please write to {email} before Friday.",
        "You can reach {name} at {email}.",
        "My e-mail is {email}, thanks.",
        "Contact {email} for the {thing}.",
        "{name} ({email}) sent the invoice.",
        "Send the {thing} to {email} please.",
        "Hello, I am {name}, my address is {email}.",
        "If the {thing} is broken, mail {email}.",
        "{email} is the address of {name}.",
        "The support team answers at {email} every day.",
    ),
    "zh": (
        "请在周五之前写信给{email}。",
        "可以通过{email}联系{name}。",
        "我的邮箱是{email}，谢谢。",
        "{thing}的问题请联系{email}。",
        "{name}（{email}）寄来了发票。",
        "请把{thing}的照片发到{email}。",
        "你好，我是{name}，邮箱是{email}。",
        "{name}的地址是{email}，请记下。",
        "客服邮箱：{email}，每天回复。",
    ),
}
_ASK_DATE: Phrasings = {
    "en": (
        "Extract the date as JSON: {text}",
        "Find the date and answer in JSON. {text}",
        "{text} Extract the date as JSON.",
        "{text}\nReturn the date as JSON.",
        "Give me the date in this text as JSON: {text}",
    ),
    "zh": (
        "把日期提取为JSON：{text}",
        "请从下面的句子中提取日期，用JSON回答：{text}",
        "{text}请以JSON格式提取其中的日期。",
        "提取日期（JSON）：{text}",
        "{text}\n用JSON给出日期。",
    ),
}
DATE_SENTENCES: Phrasings = {
    "en": (
        "The meeting is on {date} in the {place}.",
        "{name} was born on {date}.",
        "We moved to the new office on {date}.",
        "On {date} {name} bought a {thing}.",
        "The contract ends on {date}.",
        "Please pay the invoice by {date}.",
        "The {thing} arrives on {date}, says {name}.",
        "The school opened on {date}.",
    ),
    "zh": (
        "会议定于{date}在{place}举行。",
        "{name}出生于{date}。",
        "我们在{date}搬到了新办公室。",
        "{date}，{name}买了{thing}。",
        "合同将于{date}到期。",
        "请在{date}之前付款。",
        "{name}说{thing}会在{date}送到。",
        "学校于{date}开学。",
    ),
}
_ASK_PERSON: Phrasings = {
    "en": (
        "Extract the name and age as JSON: {text}",
        "{text} Extract the name and the age as JSON.",
        "Return name and age as JSON. {text}",
        "Give me the name and age in JSON: {text}",
    ),
    "zh": (
        "把姓名和年龄提取为JSON：{text}",
        "{text}请用JSON给出姓名和年龄。",
        "以JSON格式提取姓名和年龄：{text}",
        "提取姓名与年龄（JSON）：{text}",
    ),
}
PERSON_SENTENCES: Phrasings = {
    "en": (
        "{name} is {age} years old.",
        "My friend {name} is {age} and likes the {thing}.",
        "{name}, aged {age}, works in the {place}.",
        "At {age}, {name} bought a {thing}.",
        "The new teacher is called {name} and is {age} years old.",
    ),
    "zh": (
        "{name}今年{age}岁。",
        "我的朋友{name}{age}岁，喜欢{thing}。",
        "{name}，{age}岁，在{place}工作。",
        "{age}岁的{name}买了{thing}。",
        "新来的老师叫{name}，今年{age}岁。",
    ),
}
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_DOMAINS = [
    "example",
    "mail",
    "acme",
    "penstock",
    "river",
    "north",
    "school",
    "office",
    "cloud",
    "data",
    "forest",
    "bluesky",
]
_TOP_LEVELS = ["com", "org", "net", "cn", "io", "edu"]


def random_email(rng: Random) -> str:
    """An address such as anna.river7@acme.org; some of its parts are invented words."""
    first = rng.choice(NAMES["en"]).lower() if rng.random() < 0.75 else invented_word(rng, "en")
    second = rng.choice((rng.choice(NAMES["en"]).lower(), invented_word(rng, "en"), str(rng.randint(1, 999))))
    local = rng.choice((first, f"{first}.{second}", f"{first}_{second}", first + str(rng.randint(1, 99))))
    domain = rng.choice(_DOMAINS) if rng.random() < 0.85 else invented_word(rng, "en")
    return f"{local}@{domain}.{rng.choice(_TOP_LEVELS)}"


def date_text(rng: Random, date: datetime.date, language: Language) -> str:
    """The date in one of the language's ways of writing it."""
    if rng.random() < 0.15:
        return date.isoformat()
    if language == "zh":
        return f"{date.year}年{date.month}月{date.day}日"
    month = _MONTHS[date.month - 1]
    return rng.choice(
        (
            f"{month} {date.day}, {date.year}",
            f"{date.day} {month} {date.year}",
            f"{month} {date.day} {date.year}",
        )
    )


def dump(value: dict[str, object]) -> str:
    """The one way in which the tasks write JSON: one line, a space after colon and comma."""
    return json.dumps(value, ensure_ascii=False)


def _filler(rng: Random, language: Language) -> dict[str, str]:
    return {
        "name": rng.choice(NAMES[language]),
        "thing": rng.choice(THINGS[language]),
        "place": rng.choice(PLACES[language]),
    }


def email_sentence(rng: Random, language: Language) -> tuple[str, str, str]:
    """A sentence with an address in it, the JSON answer, and the content."""
    email = random_email(rng)
    text = phrase(rng, EMAIL_SENTENCES, language, email=email, **_filler(rng, language))
    return text, dump({"email": email}), f"email:{email}"


def date_sentence(rng: Random, language: Language) -> tuple[str, str, str]:
    """A sentence with a date in it, the JSON answer, and the content."""
    date = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(365 * 85))
    text = phrase(
        rng, DATE_SENTENCES, language, date=date_text(rng, date, language), **_filler(rng, language)
    )
    return text, dump({"date": date.isoformat()}), f"date:{date.isoformat()}"


def _email(rng: Random, language: Language) -> Problem:
    text, answer, content = email_sentence(rng, language)
    return single(phrase(rng, _ASK_EMAIL, language, text=text), answer, content)


def _date(rng: Random, language: Language) -> Problem:
    text, answer, content = date_sentence(rng, language)
    return single(phrase(rng, _ASK_DATE, language, text=text), answer, content)


def _person(rng: Random, language: Language) -> Problem:
    filler, age = _filler(rng, language), rng.randint(3, 99)
    text = phrase(rng, PERSON_SENTENCES, language, age=age, **filler)
    answer = dump({"name": filler["name"], "age": age})
    return single(phrase(rng, _ASK_PERSON, language, text=text), answer, f"person:{filler['name']}:{age}")


FAMILIES = (
    Family("email_to_json", _email, weight=1.4, scoring="json"),
    Family("date_to_json", _date, weight=1.2, scoring="json"),
    Family("person_to_json", _person, scoring="json"),
)
