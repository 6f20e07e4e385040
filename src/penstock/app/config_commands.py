"""`penstock config ...`: look at settings without starting anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from penstock.app.config import Config, load_config

config_app = typer.Typer(help="Check, show and describe settings.", no_args_is_help=True)
File = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file; default: none, environment only.")
]


@config_app.command()
def check(config: File = None) -> None:
    """Say whether the settings are right; exit code 2 if not.

    Example: penstock config check -c penstock.yaml
    """
    models = load_config(config).models
    typer.echo(f"ok: {len(models)} model{'' if len(models) == 1 else 's'}: {', '.join(models)}")


@config_app.command()
def show(
    config: File = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False,
) -> None:
    """Print every setting as it would apply, defaults included.

    Example: penstock config show -c penstock.yaml --json
    """
    tree = load_config(config).model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(tree, indent=2))
    else:
        typer.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).rstrip())


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of the config file.

    Example: penstock config schema > penstock.schema.json
    """
    typer.echo(json.dumps(Config.model_json_schema(), indent=2))
