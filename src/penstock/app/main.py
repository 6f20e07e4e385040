"""The command line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from penstock import __version__
from penstock.app import engine_options as options
from penstock.app import wiring
from penstock.app.banner import announce
from penstock.app.child import EXIT_USAGE
from penstock.app.config import Config, load_config
from penstock.app.config_commands import config_app
from penstock.app.lab_commands import evaluate_command, train_app
from penstock.app.link import failure_told
from penstock.asgi.server import bind
from penstock.base.errors import ConfigurationError, PenstockError
from penstock.engine.checkpoint import Task, main_task, served_name
from penstock.engine.checkpoint import find as find_checkpoint
from penstock.engine.settings import EngineSettings
from penstock.observe.logs import set_up_logs

app = typer.Typer(
    name="penstock",
    help="From a language model's weights to a service with an SLA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(config_app, name="config")
app.add_typer(train_app, name="train")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file; see `penstock config schema`.")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")]
Descriptor = Annotated[int | None, typer.Option("--fd", hidden=True, help="Inherited listening socket.")]
Link = Annotated[int | None, typer.Option(hidden=True, help="Inherited line to the supervisor.")]


@app.command()
def up(
    model: Annotated[
        str | None, typer.Option(help="builtin:tiny, a checkpoint's folder, or a Hugging Face id.")
    ] = None,
    host: Host = None,
    port: Port = None,
    config: ConfigFile = None,
    quantize: Annotated[
        str | None, typer.Option(help="Weights of that model: auto, none, int8 or int4.")
    ] = None,
) -> None:
    """Serve a model on this machine: engine and gateway, one command.

    Example: penstock up --model Qwen/Qwen3-0.6B --port 8080
    """
    changes = _server_changes(host, port)
    if model is None and quantize is not None:
        model = EngineSettings().model
    if model is not None:
        find_checkpoint(model)
        options = {"model": model} | ({} if quantize is None else {"quantize": quantize})
        changes["models"] = {served_name(model): {"replicas": [{"engine": options}]}}
    settings = load_config(config, changes, sole=None if model is None else f"--model {model}")
    for name, entry in settings.models.items():
        for replica in entry.replicas:
            if replica.engine is not None:
                find_checkpoint(replica.engine.model, f"models.{name}.replicas.engine.model")
    set_up_logs(settings.log.level, settings.log.format, "supervisor")
    tasks = _tasks(settings)
    _run(wiring.run_up(settings, lambda address, served: announce(address, settings.models, served, tasks)))


@app.command()
def gateway(
    config: ConfigFile = None, host: Host = None, port: Port = None, fd: Descriptor = None, link: Link = None
) -> None:
    """Serve the data plane alone, in front of the replicas that the config names by url.

    Example: penstock gateway -c penstock.yaml
    """
    settings = load_config(config, _server_changes(host, port))
    set_up_logs(settings.log.level, settings.log.format, "gateway")
    listener = (
        bind(settings.server.host, settings.server.port) if fd is None else wiring.inherited_listener(fd)
    )
    _run(wiring.run_gateway(settings, wiring.Place(listener, link)))


@app.command()
def engine(
    model: Annotated[str, typer.Argument(help="builtin:tiny, a checkpoint's folder, or a Hugging Face id.")],
    name: Annotated[
        str | None, typer.Option(help="The name that clients use; default: from the model.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on.")] = 8000,
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = "auto",
    kv_dtype: options.KvDtype = "auto",
    kernels: options.Kernels = "auto",
    deterministic: options.Deterministic = False,
    kernel_cache: options.KernelCache = "~/.cache/penstock/kernels",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    tool_format: options.ToolFormat = "auto",
    reasoning: options.Reasoning = "auto",
    max_model_len: options.MaxModelLen = 0,
    max_sequences: options.MaxSequences = 64,
    max_waiting: options.MaxWaiting = 256,
    max_batch_tokens: options.MaxBatchTokens = 512,
    block_size: options.BlockSize = 16,
    prefix_cache: options.PrefixCache = True,
    decode_slowdown: options.DecodeSlowdown = 2.5,
    draft_rows: options.DraftRows = 12,
    kv_cache_mb: options.KvCacheMb = 0,
    kv_snapshot: options.KvSnapshot = "",
    kv_snapshot_mb: options.KvSnapshotMb = 1024,
    kv_transfer: options.KvTransfer = False,
    lora_modules: options.LoraModules = [],  # noqa: B006 (typer makes a new list)
    max_loras: options.MaxLoras = 8,
    max_lora_rank: options.MaxLoraRank = 64,
    runtime_lora: options.RuntimeLora = False,
    kv_events: options.KvEvents = False,
    step_timeout_s: options.StepTimeoutS = 300.0,
    fd: Descriptor = None,
    link: Link = None,
) -> None:
    """Serve one model as one replica: the engine behind OpenAI's API.

    Example: penstock engine builtin:tiny --port 8000
    """
    given = {key: value for key, value in locals().items() if key in EngineSettings.model_fields}
    with failure_told(link):
        find_checkpoint(model)
        settings = load_config(
            None, {"models": {name or served_name(model): {"replicas": [{"engine": given}]}}}
        )
        served, entry = next(iter(settings.models.items()))
        engine_settings = entry.replicas[0].engine
        assert engine_settings is not None
        set_up_logs(settings.log.level, settings.log.format, f"engine {served}")
        listener = bind(host, port) if fd is None else wiring.inherited_listener(fd)
        _run(wiring.run_engine(engine_settings, served, settings.server, wiring.Place(listener, link)))


app.command(name="eval")(evaluate_command)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"penstock {__version__}")


def main() -> None:
    """Runs the command line; a configuration error prints one message and exits with 2."""
    try:
        app()
    except ConfigurationError as error:
        typer.echo(f"penstock: {error.message}", err=True)
        sys.exit(EXIT_USAGE)
    except PenstockError as error:
        typer.echo(f"penstock: {error.message}", err=True)
        sys.exit(1)


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(coroutine)


def _tasks(settings: Config) -> dict[str, Task]:
    """What the models with an engine here are for."""
    engines = {name: model.replicas[0].engine for name, model in settings.models.items()}
    return {name: main_task(engine.model) for name, engine in engines.items() if engine is not None}


def _server_changes(host: str | None, port: int | None) -> dict[str, Any]:
    given = {"host": host, "port": port}
    return {"server": {key: value for key, value in given.items() if value is not None}}
