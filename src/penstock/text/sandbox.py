"""Jinja templates of checkpoints, which are foreign code, in a sandbox.

The environment is the one that Hugging Face's templates are written for: trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, `tojson` that keeps non-ASCII text, `generation` blocks (which mark the
assistant's text for training and mean nothing here).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.base.errors import CheckpointError, InvalidRequestError


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` stands for what is inside."""

    tags = {"generation"}  # noqa: RUF012 (an instance's variable, says the base class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class SandboxedTemplate:
    """One compiled template."""

    def __init__(self, source: str) -> None:
        """Raises CheckpointError if it does not compile."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
            read = meta.find_undeclared_variables(environment.parse(source))
        except Exception as error:  # constants are computed now, so this may be anything too
            raise CheckpointError(f"the chat template does not compile: {error}") from error
        self.variables = frozenset(read) - environment.globals.keys()
        """Names that the template reads and does not set itself."""

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text.

        Raises:
            InvalidRequestError: the template refuses, with its own words, or breaks.
        """
        try:
            return self._template.render(variables)
        except Exception as error:  # foreign code may raise anything
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
