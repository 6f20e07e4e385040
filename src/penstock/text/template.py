"""Chat messages to a prompt, by the checkpoint's own Jinja template in a sandbox.

The environment is the one that Hugging Face's templates are written for: trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, `tojson` that keeps non-ASCII text, `generation` blocks (which mark the
assistant's text for training and mean nothing here).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.base.errors import CheckpointError, InvalidRequestError
from penstock.text.tokenizer import Tokenizer, token_text

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, its role as the template knows it."""

    role: str
    content: str


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` stands for what is inside."""

    tags = {"generation"}  # noqa: RUF012 (an instance's variable, says the base class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class ChatTemplate:
    """A compiled chat template; `None` stands for a checkpoint without one."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Raises CheckpointError if the template does not compile."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # constants are computed now, so this may be anything too
            raise CheckpointError(f"the chat template does not compile: {error}") from error
        self._tokenizer = tokenizer
        self._special = {
            name: text for name in _SPECIAL_TOKENS if (text := token_text(tokenizer.config.get(name)))
        }

    @staticmethod
    def of_checkpoint(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template in chat_template.jinja or tokenizer_config.json; None if there is none."""
        path = directory / "chat_template.jinja"
        if path.is_file():
            return ChatTemplate(path.read_text(encoding="utf-8"), tokenizer)
        source = tokenizer.config.get("chat_template")
        if isinstance(source, list):  # several named templates
            named = {entry.get("name"): entry.get("template") for entry in source}
            source = named.get("default")
        return ChatTemplate(source, tokenizer) if isinstance(source, str) else None

    def encode(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of the conversation up to where the assistant's next turn begins.

        Without `add_generation_prompt` they end with the last message.

        Special tokens inside a turn's content are encoded as the text they look like.

        Raises:
            InvalidRequestError: the template refuses the conversation, with its own words.
        """
        defused: list[str] = []
        messages = [
            {"role": turn.role, "content": self._tokenizer.defuse(turn.content, defused)} for turn in turns
        ]
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        return self._tokenizer.encode_prompt(text, defused)

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt as text, with the assistant's next turn opened or not."""
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except Exception as error:  # a template is foreign code and may raise anything
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
