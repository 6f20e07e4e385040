"""Structured logs: JSON lines for machines, short coloured lines for a terminal, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def set_up_logs(level: str, form: Literal["auto", "json", "console"], role: str) -> None:
    """Sets up logging of the whole process, once, at start. `role` goes on every line."""
    is_console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        _Role(role),
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_console else "iso", utc=not is_console),
    ]
    renderer: structlog.typing.Processor
    if is_console:
        # repr: clients choose parts of what is logged, and a terminal obeys escape sequences.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            repr_native_str=True,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    else:
        # Without local variables: they hold prompts and keys.
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(transformer))
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level.upper()),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The server reports broken connections as its own errors; ours are logged where they are answered.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)


class _Role:
    """Puts the process's role on every line, whatever thread it comes from."""

    def __init__(self, role: str) -> None:
        self._role = role

    def __call__(
        self, logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event["role"] = self._role
        return event
