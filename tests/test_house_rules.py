"""The house rules that a machine can check; docs/decisions/ and CONTRIBUTING.md say why they are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "penstock"
DOCS = ROOT / "docs"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

# Left imports right, never the other way, and packages of one row do not import each other.
LAYERS = (
    {"app"},
    {"console"},
    {"admin", "lab", "deploy"},
    {"gateway", "capacity", "release"},
    {"fleet", "replica", "drift", "cost"},
    {"engine", "text", "tenancy", "guard"},
    {"asgi"},
    {"observe"},
    {"store"},
    {"protocol"},
    {"base"},
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# Modules of the engine that plan without tensors, so that planning is tested without a model.
TORCH_FREE = (
    "engine/adapter.py",
    "engine/adapter_store.py",
    "engine/block_tables.py",
    "engine/blocks.py",
    "engine/encoder_queue.py",
    "engine/encoder_spec.py",
    "engine/lora_config.py",
    "engine/name_patterns.py",
    "engine/pacing.py",
    "engine/penalties.py",
    "engine/plan.py",
    "engine/prompt_lookup.py",
    "engine/readout.py",
    "engine/sampling.py",
    "engine/prefix_cache.py",
    "engine/ranking.py",
    "engine/retry_after.py",
    "engine/scheduler.py",
    "engine/sequence.py",
    "engine/settings.py",
)


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module imported anywhere in the file: at the top, lazily, or for typing alone."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(module: str) -> str | None:
    """The package of ours that a module is in; None for others and for the root."""
    parts = module.split(".")
    return parts[1] if parts[0] == "penstock" and len(parts) > 1 and parts[1] in RANK else None


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def calls(path: Path, names: set[str]) -> Iterator[ast.Call]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in names:
                yield node


def where(path: Path, node: ast.expr | ast.stmt) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def document(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_package_has_a_layer() -> None:
    found = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert found <= set(RANK), f"packages without a layer: {found - set(RANK)}"


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    own = package(module_name(path))
    if own is None:  # the package's root: the version and `python -m penstock`
        return
    for module in imports(path):
        other = package(module)
        assert other is None or other == own or RANK[other] > RANK[own], f"{own} may not import {module}"


def test_there_are_no_import_cycles() -> None:
    known = {module_name(path): path for path in source_files()}
    graph = {name: {m for m in imports(path) if m in known} - {name} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", TORCH_FREE)
def test_planning_does_not_import_torch(path: str) -> None:
    assert not any(module.split(".")[0] == "torch" for module in imports(SOURCE / path))


def test_files_are_short() -> None:
    for path in (*source_files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_FILE_LINES, f"{path.relative_to(ROOT)} has {lines} lines"


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_functions_are_short(path: Path) -> None:
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{where(path, function)} {function.name} has {length} lines"


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_names_say_something(path: Path) -> None:
    assert not EMPTY_NAMES & set(path.relative_to(SOURCE).with_suffix("").parts)


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_init_files_hold_no_logic(path: Path) -> None:
    if path.name != "__init__.py":
        return
    for node in tree(path).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert is_text or isinstance(node, ast.Import | ast.ImportFrom | ast.Assign), where(path, node)


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_modules_and_public_things_have_docstrings(path: Path) -> None:
    if path.name != "__init__.py":
        assert ast.get_docstring(tree(path)), f"{path.relative_to(ROOT)} has no docstring"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{where(path, node)} {node.name}"
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and method.name[0] != "_":
                    assert ast.get_docstring(method), f"{where(path, method)} {node.name}.{method.name}"
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            assert ast.get_docstring(node), f"{where(path, node)} {node.name}"


def test_only_the_config_reads_the_environment() -> None:
    for path in source_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}:
                assert path == SOURCE / "app" / "config.py", where(path, node)


def test_every_task_has_an_owner() -> None:
    """Tasks are started by a task group only, which waits for them and carries their errors."""
    for path in source_files():
        groups = set(re.findall(r"TaskGroup\(\) as (\w+)|(\w+): asyncio\.TaskGroup", path.read_text()))
        owners = {name for pair in groups for name in pair if name}
        for call in calls(path, {"create_task", "ensure_future"}):
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            assert isinstance(owner, ast.Name), where(path, call)
            assert owner.id in owners, where(path, call)


def test_nothing_prints() -> None:
    for path in source_files():
        for call in calls(path, {"print"}):
            is_console = isinstance(call.func, ast.Attribute)
            assert is_console, f"{where(path, call)}: use typer.echo in commands, the log elsewhere"


def test_every_setting_is_documented() -> None:
    from penstock.app.config import Config

    text = document("configuration.md")

    def check(kind: Any, seen: set[type]) -> None:
        for name, field in kind.model_fields.items():
            assert f"`{name}`" in text, f"docs/configuration.md lacks {kind.__name__}.{name}"
            assert field.description or callable(field.default_factory), f"{kind.__name__}.{name}"
            for inner in _settings_in(field.annotation):
                if inner not in seen:
                    check(inner, seen | {inner})

    check(Config, {Config})


def _settings_in(annotation: object) -> list[type]:
    from typing import get_args

    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _settings_in(inner)]


def test_every_metric_is_documented_and_named_once() -> None:
    from penstock.observe.names import ALL

    text = document("metrics.md")
    assert len({metric.name for metric in ALL}) == len(ALL)
    for metric in ALL:
        assert f"`{metric.name}`" in text, f"docs/metrics.md lacks {metric.name}"
        for label in metric.labels:
            assert f"`{label}`" in text, f"docs/metrics.md lacks the label {label}"


def test_every_error_code_is_documented() -> None:
    from penstock.base import errors

    text = document("errors.md")
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.PenstockError):
            assert f"`{kind.code}`" in text, f"docs/errors.md lacks {kind.code}"


def test_every_command_is_documented_with_an_example() -> None:
    import typer.main

    from penstock.app.main import app

    text = document("command-line.md")
    group = typer.main.get_command(app)
    for name, command in _commands(group, "penstock"):
        assert f"`{name}`" in text, f"docs/command-line.md lacks {name}"
        if name != "penstock version":
            assert "Example: penstock" in str(command.help), f"{name} --help has no example"


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for part, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {part}")
        else:
            yield f"{name} {part}", command


def test_every_local_link_in_the_docs_leads_somewhere() -> None:
    for page in (*DOCS.rglob("*.md"), *ROOT.glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_constraints_are_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+!]+", line), line
    assert "torch==2.13.0" in lines
