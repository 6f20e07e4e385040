"""What `penstock up` says when it serves."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection

import typer

from penstock.app.readiness import Served
from penstock.app.streams import drop_standard_output

QUESTION = "What is 23 + 45?"


def announce(address: str, models: Collection[str], state: Served) -> None:
    """Prints the banner. Nobody has to read it: a closed standard output is no reason to stop."""
    try:
        typer.echo(banner(address, models, state))
    except OSError:
        drop_standard_output()


def banner(address: str, models: Collection[str], state: Served) -> str:
    """Where which models are served, which are asleep or have no replica, and a command to try it with."""
    served = [name for name in models if name not in state.not_ready]
    what = f"serves {', '.join(served)}" if served else "listens"
    lines = ["", f"Penstock {what} on {address}"]
    if state.asleep:
        lines.append(f"Asleep, loaded at first use: {', '.join(state.asleep)}")
    if state.not_ready:
        lines.append(f"Not ready, no replica answers: {', '.join(state.not_ready)}")
    awake = [name for name in served if name not in state.asleep]
    command = curl_command(address, (awake or served or list(models))[0])
    lines += [
        "",
        f"  {command}",
        "",
        f"Any OpenAI client works with base_url={address}/v1 and any key. Ctrl-C stops it, letting running "
        "answers finish.",
        "",
    ]
    return "\n".join(lines)


def curl_command(address: str, model: str) -> str:
    """The README's first question as one line for a shell."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    question = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    url = f"{address}/v1/chat/completions"
    return shlex.join(["curl", url, "-H", "content-type: application/json", "-d", question])
