"""Save, end, begin, restore: the next request hits, and says the same as without; a bad file is a miss."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kv_shelf import Shelf
from native_kernels import EITHER, needs_kernels
from penstock.engine import kv_snapshot
from penstock.engine.core import EngineCore
from penstock.engine.kv_fingerprint import fingerprint_of
from penstock.engine.kv_snapshot import is_usable, restore_snapshot, save_snapshot
from penstock.engine.kv_store import KVStore
from penstock.engine.sequence import Sequence
from tiny_checkpoints import Case, write_checkpoint
from tiny_engine import build_core, greedy, new_tokens, run_to_end

MIB = 1 << 20
PROMPT = [index * 7 % 101 for index in range(100)]


class Engine(NamedTuple):
    """A core with its door."""

    core: EngineCore
    store: KVStore


def engine(directory: Path, **changes: Any) -> Engine:
    """An engine over a checkpoint."""
    core = build_core(directory, **{"block_size": 16, "num_blocks": 64, **changes})
    runner: Any = core.runner
    spec = runner.spec if hasattr(runner, "spec") else runner.decoder.spec
    fingerprint = fingerprint_of(directory, spec, runner.memory, runner.pages.layout)
    return Engine(core, KVStore(core.scheduler.tables, runner.pages, fingerprint))


def ask(core: EngineCore, prompt: list[int], salt: str = "") -> tuple[list[int], int | None]:
    """Twelve greedy tokens, and how many of the prompt's were found."""
    one = Sequence(1, list(prompt), greedy(12), cache_salt=salt)
    return new_tokens(run_to_end(core, [one]))[1], one.num_cached_tokens


@pytest.mark.parametrize("kernels", EITHER)
@pytest.mark.parametrize("name", ["qwen3", "mistral-window", "llama-yarn-rope"])
def test_the_first_request_after_a_restart_hits(
    written: Callable[[str], Any], tmp_path: Path, kernels: str, name: str
) -> None:
    """And gives, token by token, what the run before gave and what a cold engine gives."""
    directory, path = written(name).directory, tmp_path / "kv"
    first = engine(directory, kernels=kernels)
    cold, found = ask(first.core, PROMPT)
    assert found == 0
    assert save_snapshot(first.store, path, MIB) == (len(PROMPT) + 11) // 16
    second = engine(directory, kernels=kernels)
    assert restore_snapshot(second.store, path) == (len(PROMPT) + 11) // 16
    second.core.scheduler.check()
    assert ask(second.core, PROMPT) == (cold, 96)
    assert second.core.stats().prefix_hit_tokens == 96
    follow_up = [*PROMPT, *cold[:11], 5]  # what was decoded is there too
    warm, found = ask(second.core, follow_up)
    assert found == 111 // 16 * 16
    assert (warm, 0) == ask(engine(directory, kernels=kernels).core, follow_up)


@needs_kernels
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_in_short_formats_the_bits_are_the_same(checkpoint: Path, tmp_path: Path, kv_dtype: str) -> None:
    """Restored and computed here, the same request gives the same tokens."""
    first = engine(checkpoint, kernels="native", kv_dtype=kv_dtype)
    ask(first.core, PROMPT)
    save_snapshot(first.store, tmp_path / "kv", MIB)
    second = engine(checkpoint, kernels="native", kv_dtype=kv_dtype)
    restore_snapshot(second.store, tmp_path / "kv")
    assert ask(second.core, PROMPT) == ask(first.core, PROMPT)
    assert second.core.stats().prefix_hit_tokens == 96


def test_salts_come_back_apart(checkpoint: Path, tmp_path: Path) -> None:
    """A tenant finds its own again, and nobody else's."""
    first = engine(checkpoint)
    ask(first.core, PROMPT, "one")
    save_snapshot(first.store, tmp_path / "kv", MIB)
    second = engine(checkpoint)
    restore_snapshot(second.store, tmp_path / "kv")
    assert [ask(second.core, PROMPT, salt)[1] for salt in ("", "two", "one")] == [0, 0, 96]


@needs_kernels
def test_another_engine_s_snapshot_is_a_clean_miss(
    checkpoint: Path, written: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each thing that it depends on: nothing is restored, one line says what differs, answers are right."""
    path, tuned = tmp_path / "kv", tmp_path / "tuned"
    write_checkpoint(Case("qwen3", "qwen3"), tuned, seed=1)
    yarn = tmp_path / "yarn"
    write_checkpoint(Case("q", "qwen3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0,
                                                             "factor": 2.0}}), yarn)  # fmt: skip
    first = engine(checkpoint)
    ask(first.core, PROMPT)
    assert save_snapshot(first.store, path, MIB)
    caplog.set_level(logging.INFO)
    others: list[tuple[str, Path, dict[str, Any]]] = [
        ("weights", tuned, {}),
        ("rope", yarn, {}),
        ("KV format, weight format", checkpoint, {"dtype": "bfloat16"}),
        ("layout", checkpoint, {"kernels": "native"}),
        ("block size", checkpoint, {"block_size": 4}),
        ("weight format", checkpoint, {"quantize": "int8"}),
    ]
    for difference, directory, changes in others:
        other = engine(directory, **changes)
        caplog.clear()
        assert restore_snapshot(other.store, path) == 0
        (record,) = caplog.records
        assert record.message == "KV snapshot not used"
        assert f"differs in: {difference}" in vars(record)["left_out_because"]
        assert other.core.stats().num_cached_blocks == 0
        assert ask(other.core, PROMPT) == ask(engine(directory, **changes).core, PROMPT)


def test_a_snapshot_cut_anywhere_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    """From no byte to all of them."""
    shelf, path = Shelf(), tmp_path / "kv"
    shelf.compute("abcdef")
    shelf.compute("abxy", "salt")
    assert save_snapshot(shelf.store, path, MIB) == 5
    whole, counts = path.read_bytes(), []
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        other = Shelf()
        counts.append(restore_snapshot(other.store, path))
        other.check()
        assert other.texts() <= shelf.texts()
        assert len(other.texts()) == counts[-1]
    assert counts == sorted(counts)
    assert set(counts) == set(range(6))


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    """It holds prompts. Folders are made; nothing is left beside it."""
    shelf, path = Shelf(), tmp_path / "new" / "folder" / "kv[1]"
    shelf.compute("abcd")
    assert save_snapshot(shelf.store, path, MIB) == 2
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["kv[1]"]


def test_the_file_is_never_larger_than_allowed(tmp_path: Path) -> None:
    """At every size that could matter."""
    shelf, path = Shelf(), tmp_path / "kv"
    for text in ("abcdef", "abxy", "zzzz"):
        shelf.compute(text, "tenant")
    counts = []
    for size in range(0, 2000, 37):
        path.unlink(missing_ok=True)
        counts.append(save_snapshot(shelf.store, path, size))
        assert not path.exists() or path.stat().st_size <= size
        other = Shelf()
        assert restore_snapshot(other.store, path) == counts[-1]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 6)


def test_an_empty_cache_leaves_the_old_file(tmp_path: Path) -> None:
    """An engine that was started and stopped has nothing better."""
    shelf, path = Shelf(), tmp_path / "kv"
    shelf.compute("abcd")
    save_snapshot(shelf.store, path, MIB)
    before = path.read_bytes()
    assert save_snapshot(Shelf().store, path, MIB) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("when", [0, 1])
def test_what_is_not_wanted_any_more_leaves_the_old_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, when: int
) -> None:
    """A second Ctrl-C, before the first batch or after it."""
    shelf, path = Shelf(), tmp_path / "kv"
    path.write_bytes(b"old")
    shelf.compute("abcd")
    answers = iter([True] * when + [False] * 9)
    assert save_snapshot(shelf.store, path, MIB, is_wanted=lambda: next(answers)) == 0
    assert [record.message for record in caplog.records] == ["KV snapshot not saved"]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kv"]


def test_what_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Here the folder is a file."""
    (tmp_path / "folder").write_bytes(b"")
    shelf = Shelf()
    shelf.compute("abcd")
    assert save_snapshot(shelf.store, tmp_path / "folder" / "kv", MIB) == 0
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "KV snapshot not saved")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Here it is full after 200 bytes, by a limit on this process's files."""
    shelf, path = Shelf(), tmp_path / "kv"
    path.write_bytes(b"old")
    shelf.compute("abcd")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        assert save_snapshot(shelf.store, path, MIB) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in vars(caplog.records[0])["error"]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kv"]


def test_half_written_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """Once they are old: a young one may be another process's."""
    shelf, path = Shelf(), tmp_path / "kv"
    shelf.compute("abcd")
    old, young = tmp_path / ".kv.old.partial", tmp_path / ".kv.young.partial"
    for partial in (old, young):
        partial.write_bytes(b"half")
    os.utime(old, (1, 1))
    save_snapshot(shelf.store, path, MIB)
    assert {entry.name for entry in tmp_path.iterdir()} == {"kv", young.name}


def test_what_is_no_file_is_known(tmp_path: Path) -> None:
    """So that a setting that cannot work is refused at the start."""
    assert is_usable(tmp_path / "not there")
    assert not is_usable(tmp_path)
    assert not is_usable(Path("/dev/null"))
    assert not is_usable(Path("null\0character"))
    assert kv_snapshot.restore_snapshot(Shelf().store, tmp_path) == 0  # a folder: logged, no error
