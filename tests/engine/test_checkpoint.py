"""From what a user calls a model to a folder, and helpful words where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penstock.base.errors import CheckpointError
from penstock.engine.checkpoint import Task, builtin_names, main_task, resolve, served_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Hub settings are read when the library is imported, so each is tried in a process of its own.
RESOLVE = """
import sys
from penstock.base.errors import CheckpointError
from penstock.engine.checkpoint import resolve
try:
    print("found", resolve(sys.argv[1]))
except CheckpointError as error:
    print("refused", error.param, error.message)
"""


def resolve_elsewhere(model: str, **environment: str) -> str:
    """What `resolve` says in a fresh process with these environment variables."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, model],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def lay_out_like_the_hub(cache: Path) -> Path:
    """A cache with one snapshot of owner/name, as huggingface_hub leaves it."""
    repository = cache / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", "utf-8")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, "ascii")
    return snapshot


class NotFound(BaseHTTPRequestHandler):
    """A hub that has no model."""

    def do_GET(self) -> None:
        """404, in the hub's words."""
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def empty_hub() -> Iterator[str]:
    """The address of a hub on the loopback that answers 404 to everything."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_folder_is_itself_and_serves_under_its_own_name(tmp_path: Path) -> None:
    """Trailing slashes and dots do not change the name."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert resolve(str(folder)) == folder
    assert served_name(str(folder)) == "my-model"
    assert served_name(f"{folder}/.") == "my-model"
    assert served_name(f"{folder}/") == "my-model"


def test_a_home_folder_is_found(tmp_path: Path) -> None:
    """A config file is read without a shell."""
    (tmp_path / "models" / "m").mkdir(parents=True)
    assert resolve_elsewhere("~/models/m", HOME=str(tmp_path)) == f"found {tmp_path}/models/m"


def test_a_file_is_refused_with_what_to_give(tmp_path: Path) -> None:
    """Users point at the weights."""
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file; give the folder") as caught:
        resolve(str(file))
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nonsense",
        "a b/c",
        "./missing/x",
        "/no/such/folder",
        "~/no/such",
        "~nobody-here/x",
        "a/b/c",
        "\0",
        "x" * 5000,
    ],
)
def test_a_name_that_is_nothing_says_what_it_could_be(name: str) -> None:
    """An empty name is not the current folder."""
    with pytest.raises(CheckpointError, match="neither builtin:NAME, nor a folder, nor"):
        resolve(name)
    assert served_name(name) == name


@pytest.mark.parametrize("name", ["builtin:huge", "builtin:", "builtin:../engine"])
def test_an_unknown_builtin_names_those_that_exist(name: str) -> None:
    """And does not leave the package's folder."""
    with pytest.raises(CheckpointError, match="no built-in model") as caught:
        resolve(name)
    assert all(known in caught.value.message for known in builtin_names())


def test_every_builtin_resolves_to_its_folder() -> None:
    """And serves under its short name."""
    for name in builtin_names():
        assert (resolve(f"builtin:{name}") / "config.json").is_file()
        assert served_name(f"builtin:{name}") == name


def test_a_hub_id_serves_under_itself() -> None:
    """Clients know the model by it."""
    assert served_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_a_cached_hub_model_is_found_offline(tmp_path: Path) -> None:
    """A machine without network serves what was downloaded before."""
    snapshot = lay_out_like_the_hub(tmp_path)
    said = resolve_elsewhere("owner/name", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert said == f"found {snapshot}"


def test_a_hub_model_that_is_not_cached_is_refused_offline(tmp_path: Path) -> None:
    """With both readings of the name, as the user may have meant a folder."""
    said = resolve_elsewhere("owner/name", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert said.startswith("refused model there is no folder 'owner/name', and it could not be downloaded")


def test_a_hub_without_the_model_is_said_so(tmp_path: Path, empty_hub: str) -> None:
    """A private model looks the same from outside, so the token is mentioned."""
    said = resolve_elsewhere("owner/name", HF_HUB_CACHE=str(tmp_path), HF_ENDPOINT=empty_hub)
    assert said.startswith("refused model Hugging Face has no model 'owner/name'")
    assert "HF_TOKEN" in said


def test_an_unreachable_hub_is_said_so(tmp_path: Path) -> None:
    """Nothing listens on port 9 of the loopback."""
    said = resolve_elsewhere("owner/name", HF_HUB_CACHE=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("refused model there is no folder 'owner/name', and it could not be downloaded")


def test_an_id_that_the_hub_forbids_is_refused(tmp_path: Path) -> None:
    """The library raises a ValueError of its own there."""
    said = resolve_elsewhere("owner/na--me", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert said.startswith("refused model there is no folder 'owner/na--me'")


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ('{"architectures": ["BertModel"]}', "embed"),
        ('{"architectures": ["XLMRobertaForSequenceClassification"]}', "score"),
        ('{"architectures": ["Qwen3ForCausalLM"]}', "generate"),
        ('{"architectures": []}', "generate"),
        ('{"architectures": [["BertModel"]]}', "generate"),
        ("[]", "generate"),
        ("{", "generate"),
        (None, "generate"),
    ],
)
def test_what_a_model_is_for_is_told_from_its_folder(tmp_path: Path, config: str | None, task: Task) -> None:
    """Where that cannot be told it generates, and loading it will say what is wrong."""
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert main_task(str(tmp_path)) == task


def test_what_is_not_here_is_not_looked_for() -> None:
    """Neither downloaded nor complained about."""
    for model in ("nobody/nothing", "builtin:none", "", "builtin:tiny"):
        assert main_task(model) == "generate"
