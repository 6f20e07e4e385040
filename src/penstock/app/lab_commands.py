"""`penstock eval` and `penstock train ...`: the lab on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from penstock.app.config import let_threads_sleep
from penstock.app.wiring import require_engine
from penstock.base.errors import ConfigurationError
from penstock.engine.checkpoint import find as find_checkpoint
from penstock.engine.settings import EngineSettings, Quantize
from penstock.observe.logs import set_up_logs

if TYPE_CHECKING:
    from penstock.lab.evaluate import Answerer, Report, Score

EXIT_SHORTFALL = 1
train_app = typer.Typer(help="Train models.", no_args_is_help=True)


def evaluate_command(
    model: Annotated[
        str, typer.Argument(help="builtin:tiny, a folder, a Hugging Face id; with --url the served name.")
    ] = "builtin:tiny",
    url: Annotated[str | None, typer.Option(help="Ask this OpenAI-compatible server instead.")] = None,
    per_family: Annotated[int, typer.Option(min=1, help="Held-out examples per family.")] = 100,
    family: Annotated[list[str] | None, typer.Option(help="Only this family; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the suite; default: the model card's.")] = None,
    quantize: Annotated[Quantize, typer.Option(help="Weights: auto, none, int8 or int4.")] = "auto",
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit code 1 below 90 % overall or 75 % in a family.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Score a model by exact match on the held-out suite of the built-in tasks.

    Example: penstock eval builtin:tiny --per-family 100
    """
    require_engine()
    let_threads_sleep()
    set_up_logs("warning", "auto", "eval")
    from penstock.lab.evaluate import SUITE_SEED, evaluate

    answerer = _answerer(model, url, quantize)
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("answering", total=None)
        try:
            report = evaluate(
                answerer,
                per_family=per_family,
                seed=SUITE_SEED if seed is None else seed,
                families=family or None,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except ValueError as error:
            raise ConfigurationError(str(error), param="family") from error
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        Console().print(_table(report))
    shortfalls = report.shortfalls()
    for line in shortfalls if gate else ():
        typer.echo(f"below the gate: {line}", err=True)
    if gate and shortfalls:
        raise typer.Exit(EXIT_SHORTFALL)


@train_app.command()
def tiny(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the training log.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in all; the phases keep their proportions.")
    ] = None,
) -> None:
    """Train the built-in model again, from data generated from the seed. Ctrl-C keeps what is there.

    Example: penstock train tiny --out ./tiny
    """
    require_engine()
    from penstock.lab.pretrain import TrainSettings, train_tiny

    settings = TrainSettings(seed=seed)
    train_tiny(settings if steps is None else settings.scaled_to(steps), out, Console())
    typer.echo(f"{out} holds the checkpoint; score it with: penstock eval {out}")


def _answerer(model: str, url: str | None, quantize: Quantize) -> Answerer:
    from penstock.lab.answerers import EngineAnswerer, UrlAnswerer

    if url is not None:
        if quantize != "auto":
            raise ConfigurationError("--quantize is for a model loaded here, not for --url", param="quantize")
        return UrlAnswerer(url, None if model == "builtin:tiny" else model)
    find_checkpoint(model)
    return EngineAnswerer(EngineSettings(model=model, quantize=quantize))


def _table(report: Report) -> Table:
    table = Table(title=f"exact match on held-out examples (seed {report.seed})")
    for column in ("", "right", "of", "share", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")

    def add(name: str, score: Score) -> None:
        interval = f"{score.low:.1%} to {score.high:.1%}"
        table.add_row(name, str(score.right), str(score.total), f"{score.share:.1%}", interval)

    for name, score in report.families.items():
        add(name, score)
    table.add_section()
    for name, score in report.languages.items():
        add(f"language {name}", score)
    table.add_section()
    add("overall", report.overall)
    return table
