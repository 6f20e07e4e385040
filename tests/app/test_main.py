"""The command line without serving: help, imports, arguments."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from penstock.app.main import app, engine
from penstock.app.wiring import engine_arguments
from penstock.engine.settings import EngineSettings

# What `pip install penstock` without extras does not bring.
EXTRAS = ("torch", "tokenizers", "jinja2", "numpy", "huggingface_hub", "safetensors", "transformers")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "code",
    [
        "import penstock.gateway.app",
        "import penstock.app.main",
        "sys.argv = ['penstock', 'gateway', '--help']; from penstock.app.main import main; main()",
        "sys.argv = ['penstock', 'engine', '--help']; from penstock.app.main import main; main()",
        "sys.argv = ['penstock', 'config', 'check']; from penstock.app.main import main; main()",
    ],
)
def test_the_gateway_needs_no_extras(code: str) -> None:
    """With every one of them missing."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); "
    done = python(blocked + code)
    assert done.returncode == 0, done.stderr


def test_every_command_has_an_example() -> None:
    """In its help."""
    for group in (app, *(entry.typer_instance for entry in app.registered_groups)):
        assert group is not None
        for command in group.registered_commands:
            assert command.callback is not None
            doc = command.callback.__doc__ or ""
            assert "Example: penstock" in doc or command.callback.__name__ == "version", command.callback


def test_every_engine_setting_is_an_option() -> None:
    """With the same default, since `up` passes all of them on and the rest of the world reads the help."""
    options = inspect.signature(engine).parameters
    for name, field in EngineSettings.model_fields.items():
        assert name in options
        if name != "model":
            assert options[name].default == field.default, name


def test_engine_settings_survive_the_command_line(tmp_path: Path) -> None:
    """What `up` starts is what the config says: each option arrives in its field."""
    settings = EngineSettings(
        model=str(tmp_path), dtype="bfloat16", device="cpu", threads=3, max_model_len=77, max_sequences=5,
        max_waiting=6, max_batch_tokens=99, block_size=8, prefix_cache=False, decode_slowdown=3.0,
        draft_rows=5,
        kv_cache_mb=12, step_timeout_s=0.5, quantize="int4", kv_dtype="int8", kernels="torch",
        kernel_cache="/somewhere else", deterministic=True, tool_format="hermes", reasoning="none",
        kv_snapshot="/somewhere/kv", kv_snapshot_mb=7, kv_transfer=True,
        lora_modules=["a=/x=y", "b c=z"], max_loras=3, max_lora_rank=5,
        runtime_lora=True, kv_events=True,
    )  # fmt: skip
    command = typer.main.get_command(app).commands["engine"]  # type: ignore[attr-defined]
    with command.make_context("engine", list(engine_arguments(settings, "org/a name"))) as context:
        assert context.params["name"] == "org/a name"
        given = {key: context.params[key] for key in EngineSettings.model_fields}
    assert EngineSettings(**given) == settings
    default = EngineSettings().model_dump()
    assert all(value != default[key] for key, value in settings.model_dump().items())


def test_a_folder_may_look_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `up` starts is not mistaken for one."""
    (tmp_path / "-x").mkdir()
    monkeypatch.chdir(tmp_path)
    command = typer.main.get_command(app).commands["engine"]  # type: ignore[attr-defined]
    arguments = ["--fd=1", "--link=2", *engine_arguments(EngineSettings(model="-x"), "-x")]
    with command.make_context("engine", arguments) as context:
        assert (context.params["model"], context.params["name"]) == ("-x", "-x")


def test_ctrl_c_during_the_imports_is_no_traceback() -> None:
    """130, as shells expect it of SIGINT."""
    done = python(
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'penstock.app.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from penstock.__main__ import main\n"
        "main()"
    )
    assert (done.returncode, done.stderr) == (130, "")


def run(script: str) -> subprocess.CompletedProcess[str]:
    """A line for a shell; `$P` is penstock."""
    return subprocess.run(
        ["/bin/sh", "-c", f'P="{sys.executable} -m penstock"; {script}'],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_failure(closed: str) -> None:
    """Some process managers start services so; nothing else may get their numbers."""
    done = run(f"$P config check {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    check = "import os; from penstock.app.streams import hold_standard_streams as hold; hold(); print(1);"
    done = run(f"{sys.executable} -c '{check} raise SystemExit(os.dup(0) - 3)' {closed}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--port", "70000"], ["up", "--port", "x"], ["up", "--nonsense"], ["nonsense"], ["engine"],
        ["up", "extra"],
    ],
)  # fmt: skip
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    """As every command line does."""
    assert CliRunner().invoke(app, arguments).exit_code == 2
