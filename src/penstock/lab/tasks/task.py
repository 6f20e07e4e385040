"""What a task is: a problem with one exact answer, the family that generates it, and how it is scored."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

Message = dict[str, str]
Random = random.Random

HELD_OUT_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Exchange:
    """One user turn and the one right reply.

    `content` names the problem apart from its wording ("add:23:45"); it decides on which side of the
    held-out split the exchange falls, whatever phrasing or language it is asked in.
    """

    prompt: str
    answer: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One or more exchanges that belong together; the last one is scored.

    `system` is set where the problem needs its own system prompt; otherwise the corpus chooses a neutral
    one or none.
    """

    exchanges: tuple[Exchange, ...]
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A problem as a chat: `messages` ends with the user's last turn, `answer` is the exact reply."""

    family: str
    language: Language
    messages: tuple[Message, ...]
    answer: str
    contents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of problem. `generate(rng, language)` is a pure function of the generator's state.

    `weight` is the family's share of the training stream relative to the others. `scoring` is "text"
    (equal after stripping white space) or "json" (equal as parsed JSON). A family that is not `scored` is
    practice: it is trained, and left out of the held-out suite.
    """

    name: str
    generate: Callable[[Random, Language], Problem]
    weight: float = 1.0
    scoring: Literal["text", "json"] = "text"
    scored: bool = True

    def correct(self, answer: str, expected: str) -> bool:
        """Whether `answer` is the expected one under the family's scoring."""
        if answer.strip() == expected.strip():
            return True
        if self.scoring == "text":
            return False
        try:
            return bool(json.loads(answer) == json.loads(expected))
        except ValueError:
            return False


def is_held_out(content: str) -> bool:
    """Whether a content belongs to the held-out tenth: a stable hash, the same on every machine."""
    digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


Phrasings = Mapping[Language, Sequence[str]]


CASUAL = 0.12
"""Share of phrasings in which a small first letter, or no final mark, replaces the careful spelling."""


def phrase(rng: Random, phrasings: Phrasings, language: Language, **slots: object) -> str:
    """One of the language's phrasings, drawn uniformly, at times casually spelt, with its slots filled."""
    pattern = rng.choice(phrasings[language])
    if rng.random() < CASUAL:
        pattern = pattern[0].lower() + pattern[1:]
    if rng.random() < CASUAL:
        pattern = pattern.rstrip("?.？。") or pattern
    return pattern.format(**slots)


def wording(prompt: str) -> str:
    """The prompt apart from capitals and the final mark: what closed sets hold back in the split."""
    return prompt.lower().rstrip("?.!？。！")


def single(prompt: str, answer: object, content: str) -> Problem:
    """The problem of one exchange, under any neutral system prompt."""
    return Problem((Exchange(prompt, str(answer), content),))
