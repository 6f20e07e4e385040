"""The config tree: what wins, what is refused, and in which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from penstock.app.config import Config, child_environment, load_config
from penstock.app.config_commands import config_app
from penstock.base.errors import ConfigurationError

EXAMPLE = """
server: {host: 127.0.0.1, port: 8080}
models:
  small: {replicas: [{engine: {model: builtin:tiny}}]}
  large:
    replicas: [{url: http://10.0.0.5:8000/v1, kind: vllm}, {url: http://10.0.0.6:8000/v1, kind: vllm}]
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of the developer's own settings."""
    for name in list(os.environ):
        if name.startswith("PENSTOCK__"):
            monkeypatch.delenv(name)
    return monkeypatch


def written(folder: Path, text: str) -> Path:
    path = folder / "penstock.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load_config(written(folder, text))
    return caught.value


def test_nothing_given_serves_the_built_in_model() -> None:
    """On port 8080 of this machine alone."""
    config = load_config(None)
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert config.models["tiny"].replicas[0].engine is not None


def test_the_designs_example_is_read(tmp_path: Path) -> None:
    """As far as it is built."""
    config = load_config(written(tmp_path, EXAMPLE))
    assert list(config.models) == ["small", "large"]
    assert config.models["large"].replicas[1].url == "http://10.0.0.6:8000/v1"


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    """Nor does one of comments."""
    assert load_config(written(tmp_path, "# nothing\n")) == load_config(None)


def test_the_command_line_beats_the_environment_beats_the_file(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    """Key by key, so that one does not wipe out its neighbours."""
    path = written(tmp_path, "server: {port: 1, host: a, drain_timeout_s: 3}")
    environment.setenv("PENSTOCK__SERVER__PORT", "2")
    environment.setenv("PENSTOCK__SERVER__HOST", "b")
    server = load_config(path, {"server": {"port": 3}}).server
    assert (server.port, server.host, server.drain_timeout_s) == (3, "b", 3.0)


def test_numbers_are_read_from_the_environment(environment: pytest.MonkeyPatch) -> None:
    """Its values are YAML: a number is a number."""
    environment.setenv("PENSTOCK__SERVER__PORT", "9000")
    environment.setenv("PENSTOCK__UPSTREAM__CONNECT_TIMEOUT_S", "3")
    config = load_config(None)
    assert (config.server.port, config.upstream.connect_timeout_s) == (9000, 3.0)


def test_models_are_replaced_whole(tmp_path: Path) -> None:
    """`--model` serves that model, not that model and the file's."""
    changes = {"models": {"new": {"replicas": [{"url": "http://a/v1"}]}}}
    assert list(load_config(written(tmp_path, EXAMPLE), changes).models) == ["new"]


def test_the_environment_adds_to_the_files_models(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """One more model, and one of the file's changed: the others stay."""
    environment.setenv("PENSTOCK__MODELS__MORE__REPLICAS", "[{url: http://a/v1}]")
    environment.setenv("PENSTOCK__MODELS__LARGE", '{"replicas": [{"url": "http://b/v1"}]}')
    config = load_config(written(tmp_path, EXAMPLE))
    assert list(config.models) == ["small", "large", "more"]
    assert [replica.url for replica in config.models["large"].replicas] == ["http://b/v1"]


def test_two_places_that_say_what_is_served_are_refused(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    """`--model` beside a file or variables with models: one of them would be dropped in silence."""
    changes = {"models": {"new": {"replicas": [{"url": "http://a/v1"}]}}}
    with pytest.raises(ConfigurationError, match=r"--model new and .*penstock\.yaml both say"):
        load_config(written(tmp_path, EXAMPLE), changes, sole="--model new")
    no_models = written(tmp_path, "log: {level: debug}")
    assert list(load_config(no_models, changes, sole="--model new").models) == ["new"]
    environment.setenv("PENSTOCK__MODELS__B__REPLICAS", "[{url: http://b/v1}]")
    with pytest.raises(ConfigurationError, match=r"--model new and .*PENSTOCK__MODELS"):
        load_config(no_models, changes, sole="--model new")


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("server: {port: 1}\nlog: {}\nserver: {port: 2}", "server", 3),
        ("server:\n  port: 1\n  host: a\n  'port': 2", "port", 4),
        ("models:\n  a: {replicas: [{url: http://a/v1, url: http://b/v1}]}", "url", 2),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str, key: str, line: int) -> None:
    """One of the two would be ignored."""
    assert f"the key '{key}' is there twice (line {line}," in refusal(tmp_path, text).message


def test_merged_keys_may_be_there_twice(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """That is what YAML's merge is for; and in a variable, JSON or YAML, the rule is the same."""
    text = "models:\n  a: &a {replicas: [{url: http://a/v1}]}\n  b: {<<: *a, replicas: [{url: http://b/v1}]}"
    urls = [model.replicas[0].url for model in load_config(written(tmp_path, text)).models.values()]
    assert urls == ["http://a/v1", "http://b/v1"]
    environment.setenv("PENSTOCK__SERVER", '{"port": 1, "port": 2}')
    with pytest.raises(ConfigurationError, match=r"PENSTOCK__SERVER.*'port' is there twice"):
        load_config(None)


@pytest.mark.parametrize(
    "name", ['""', f'"{"x" * 257}"', '"a\\nb"', '"a\\u0000"', '"\\e[31m"', '"a\\u2028b"', '"\\x85"']
)
def test_an_impossible_name_of_a_model_is_refused(tmp_path: Path, name: str) -> None:
    """Clients could not send it, and terminals obey control characters."""
    error = refusal(tmp_path, f"models:\n  {name}: {{replicas: [{{url: http://a/v1}}]}}")
    assert "name" in error.message
    assert error.message.isprintable()
    assert error.param == "models"


@pytest.mark.parametrize("name", ["x" * 256, "org/name", "Ü 水 v1.0:latest", "-x"])
def test_any_other_name_of_a_model_is_taken(name: str) -> None:
    """People call them what they like."""
    models = {"models": {name: {"replicas": [{"url": "http://a/v1"}]}}}
    assert list(load_config(None, models).models) == [name]


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("[m]", "'m' of 'm' has a name that is taken"),
        ("[n]", "'n' of 'm' has a name that is taken"),
        ("[other]", "has a name that is taken"),
        ('[""]', "1 to 256 printable characters"),
        ('["a\\nb"]', "1 to 256 printable characters"),
    ],
)
def test_an_adapters_name_must_lead_to_one_model(tmp_path: Path, adapters: str, message: str) -> None:
    """Among all models and all their adapters."""
    path = tmp_path / "c.yaml"
    url = "replicas: [{url: 'http://a/v1'}]"
    path.write_text(f"models: {{m: {{{url}, loras: {adapters}}}, n: {{{url}, loras: [other]}}}}")
    with pytest.raises(ConfigurationError, match=message):
        load_config(path)


def test_several_variables_build_one_tree(environment: pytest.MonkeyPatch) -> None:
    """Two models by two variables are two models."""
    environment.setenv("PENSTOCK__MODELS__A__REPLICAS", "[{url: http://a/v1}]")
    environment.setenv("PENSTOCK__MODELS__B__REPLICAS", '[{"url": "http://b/v1"}]')
    assert list(load_config(None).models) == ["a", "b"]


def test_a_childs_environment_gives_the_same_config(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """Whatever characters names have and however small numbers are."""
    environment.setenv("PENSTOCK__LOG__LEVEL", "debug")
    text = (
        'upstream: {health_interval_s: 1.0e-7}\nmodels:\n  "Q/ü-水-\\U0001F600 \\u200d\\"":'
        " {replicas: [{url: 'http://a/v1'}]}\n"
    )
    config = load_config(written(tmp_path, text))
    child = child_environment(config)
    assert child["PATH"] == os.environ["PATH"]
    assert "PENSTOCK__LOG__LEVEL" not in child
    environment.delenv("PENSTOCK__LOG__LEVEL")
    for name, value in child.items():
        if name.startswith("PENSTOCK__"):
            environment.setenv(name, value)
    assert load_config(None) == config


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("servr: {}", "servr", "did you mean server?"),
        ("server: {prot: 1}", "server.prot", "did you mean server.port?"),
        ("server: {drain_timout: 1}", "server.drain_timout", "did you mean server.drain_timeout_s?"),
        ("models: {x: {replica: []}}", "models.x", "did you mean models.x.replicas?"),
        (
            "models: {x: {replicas: [{engine: {dtpye: auto}}]}}",
            "models.x.replicas[0].engine.dtpye",
            "did you mean models.x.replicas[0].engine.dtype?",
        ),
        (
            "models: {x: {replicas: [{url: http://a/v1}, {ulr: http://a/v1}]}}",
            "models.x.replicas[1].ulr",
            "did you mean models.x.replicas[1].url?",
        ),
        ("log: {zzz: 1}", "log.zzz", "known here: format, level"),
        ("7: 1", "7", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(
    tmp_path: Path, text: str, key: str, hint: str
) -> None:
    """At every depth."""
    message = refusal(tmp_path, text).message
    assert key in message
    assert hint in message
    assert "penstock.yaml" in message


def test_an_unknown_variable_is_refused_with_the_nearest_right_one(environment: pytest.MonkeyPatch) -> None:
    """A misspelt variable is no less wrong than a misspelt key."""
    environment.setenv("PENSTOCK__SERVR__PORT", "1")
    with pytest.raises(ConfigurationError, match=r"unknown key servr; did you mean server\?"):
        load_config(None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server: {port: eighty}", "server.port"),
        ("server: {port: 70000}", "server.port"),
        ("server: {port: }", "server.port"),
        ("server: {port: true}", "server.port"),
        ("server: {drain_timeout_s: true}", "server.drain_timeout_s"),
        ("upstream: {max_connections: true}", "upstream.max_connections"),
        ("models: {x: {replicas: [{url: 'http://a b/v1'}]}}", "models.x.replicas[0].url"),
        ("server: 7", "server"),
        ("log: {level: loud}", "log.level"),
        ("upstream: {connect_timeout_s: 0}", "upstream.connect_timeout_s"),
        ("models: {}", "models"),
        ("models: []", "models"),
        ("models: {x: {replicas: []}}", "models.x.replicas"),
        ("models: {x: {replicas: [{}]}}", "models.x.replicas[0]"),
        ("models: {x: {replicas: [{url: https://a/v1}]}}", "models.x.replicas[0].url"),
        (
            "models: {x: {replicas: [{engine: {max_sequences: 0}}]}}",
            "models.x.replicas[0].engine.max_sequences",
        ),
        ("models: {x: {replicas: [{engine: {max_batch_tokens: 1}}]}}", "models.x.replicas[0].engine"),
        ("models: {7: {replicas: [{url: http://a/v1}]}}", "models"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    """With the value where it is short."""
    error = refusal(tmp_path, text)
    assert f"{key}" in error.message
    assert (error.param or "").startswith(key)


@pytest.mark.parametrize(
    "text",
    ["a: [", "\t- x", "- a list", "just text", "2001-99-99", "x: 2001-99-99", "a: &a [*a", "!!python/x y"],
)
def test_what_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """With the file's name, not a traceback."""
    assert "penstock.yaml" in refusal(tmp_path, text).message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xff")
    for path in (tmp_path / "missing.yaml", tmp_path, latin):
        with pytest.raises(ConfigurationError, match=str(path)):
            load_config(path)


def test_a_variable_that_is_no_yaml_is_refused(environment: pytest.MonkeyPatch) -> None:
    """By its name."""
    environment.setenv("PENSTOCK__SERVER", "{port: ")
    with pytest.raises(ConfigurationError, match="PENSTOCK__SERVER"):
        load_config(None)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(config_app, list(arguments))


def test_config_check_names_the_models(tmp_path: Path) -> None:
    """And how many there are."""
    done = invoke("check", "-c", str(written(tmp_path, EXAMPLE)))
    assert (done.exit_code, done.output) == (0, "ok: 2 models: small, large\n")


def test_config_check_exits_with_2(tmp_path: Path) -> None:
    """As a user sees it: one line on standard error."""
    command = [sys.executable, "-m", "penstock", "config", "check", "-c", str(written(tmp_path, "servr: 1"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("penstock: ")
    assert "did you mean server?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_config_show_can_be_read_back(tmp_path: Path) -> None:
    """Every setting, as JSON and as YAML."""
    path = written(tmp_path, EXAMPLE)
    shown = json.loads(invoke("show", "--json", "-c", str(path)).output)
    assert shown == load_config(path).model_dump(mode="json")
    again = written(tmp_path, invoke("show", "-c", str(path)).output)
    assert load_config(again).model_dump(mode="json") == shown


def test_the_schema_describes_the_tree() -> None:
    """Every key with its meaning, unknown ones forbidden."""
    schema = json.loads(invoke("schema").output)
    assert schema == Config.model_json_schema()

    def objects(node: Any) -> list[dict[str, Any]]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        own = (
            [node] if isinstance(node, dict) and "properties" in node and node.get("type") == "object" else []
        )
        return own + [found for child in inner for found in objects(child)]

    described = objects(schema)
    assert {"server", "upstream", "engines", "log", "models"} == set(schema["properties"])
    assert all(entry["additionalProperties"] is False for entry in described)
    assert len(described) == 1 + len(schema["$defs"])
