"""What `penstock up` says when it serves."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import typer

from penstock.app.readiness import Served
from penstock.app.streams import drop_standard_output
from penstock.engine.checkpoint import Task

QUESTION = "What is 23 + 45?"
_EXAMPLES: dict[Task, tuple[str, dict[str, Any]]] = {
    "generate": ("chat/completions", {"messages": [{"role": "user", "content": QUESTION}]}),
    "embed": ("embeddings", {"input": QUESTION}),
    "score": ("rerank", {"query": QUESTION, "documents": ["68", "A river in Wales"]}),
}
_NOTHING_ELSE: Mapping[str, Task] = MappingProxyType({})


def announce(
    address: str,
    models: Collection[str],
    state: Served,
    tasks: Mapping[str, Task] = _NOTHING_ELSE,
) -> None:
    """Prints the banner. Nobody has to read it: a closed standard output is no reason to stop."""
    try:
        typer.echo(banner(address, models, state, tasks))
    except OSError:
        drop_standard_output()


def banner(
    address: str,
    models: Collection[str],
    state: Served,
    tasks: Mapping[str, Task] = _NOTHING_ELSE,
) -> str:
    """Where which models are served, which are asleep or have no replica, and a command to try it with.

    `tasks`: what models are for, those that generate left out.
    """
    served = [name for name in models if name not in state.not_ready]
    what = f"serves {', '.join(served)}" if served else "listens"
    lines = ["", f"Penstock {what} on {address}"]
    if state.asleep:
        lines.append(f"Asleep, loaded at first use: {', '.join(state.asleep)}")
    if state.not_ready:
        lines.append(f"Not ready, no replica answers: {', '.join(state.not_ready)}")
    awake = [name for name in served if name not in state.asleep]
    first = (awake or served or list(models))[0]
    command = curl_command(address, first, tasks.get(first, "generate"))
    lines += [
        "",
        f"  {command}",
        "",
        f"Any OpenAI client works with base_url={address}/v1 and any key. Ctrl-C stops it, letting running "
        "answers finish.",
        "",
    ]
    return "\n".join(lines)


def curl_command(address: str, model: str, task: Task = "generate") -> str:
    """The README's first question, or what else the model is for, as one line for a shell."""
    path, fields = _EXAMPLES[task]
    question = json.dumps({"model": model, **fields}, ensure_ascii=False, separators=(",", ":"))
    url = f"{address}/v1/{path}"
    return shlex.join(["curl", url, "-H", "content-type: application/json", "-d", question])
