"""The kernels are built once, appear whole, and say what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from native_kernels import find_kernels, needs_kernels
from penstock.engine.native.build import SOURCES, KernelsUnavailableError, Toolchain, load_kernels

STRANGE_CPU = frozenset({"avx512f", "fma"})


def test_a_cpu_without_the_instructions_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    """Before anything is compiled."""
    with pytest.raises(KernelsUnavailableError, match=r"this CPU lacks .*avx512_vnni"):
        load_kernels(tmp_path, Toolchain(cpu_flags=STRANGE_CPU))
    assert list(tmp_path.iterdir()) == []


@needs_kernels
def test_no_compiler_is_said(tmp_path: Path) -> None:
    """With the names that were looked for."""
    with pytest.raises(
        KernelsUnavailableError, match=r"no C\+\+ compiler here \(looked for no-such-compiler\)"
    ):
        load_kernels(tmp_path, Toolchain(compilers=("no-such-compiler",)))


@needs_kernels
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A half-built library would be loaded by the next process."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "broken.cpp").write_text("int main( {}\n")
    with pytest.raises(KernelsUnavailableError, match=r"failed on the kernels: .*broken\.cpp.*error"):
        load_kernels(tmp_path / "cache", Toolchain(sources=sources))
    assert list((tmp_path / "cache").iterdir()) == []


@needs_kernels
def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """What to do about it is said too."""
    toolchain = Toolchain()
    toolchain.library(tmp_path).write_bytes(b"not a library")
    with pytest.raises(KernelsUnavailableError, match="delete it to build it again"):
        load_kernels(tmp_path, toolchain)


@needs_kernels
def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """As where the home folder is read-only."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(KernelsUnavailableError, match="cannot be built in"):
        load_kernels(tmp_path / "file" / "cache")


def test_the_name_changes_with_sources_and_cpu(tmp_path: Path) -> None:
    """A kernel compiled for another machine, or before an upgrade, is never loaded."""
    other = tmp_path / "sources"
    other.mkdir()
    for source in SOURCES.iterdir():
        (other / source.name).write_bytes(source.read_bytes())
    names = [Toolchain(sources=other).library(tmp_path)]
    (other / "pool.cpp").write_bytes((other / "pool.cpp").read_bytes() + b" ")
    names += [Toolchain(sources=other).library(tmp_path), Toolchain(cpu_flags=STRANGE_CPU).library(tmp_path)]
    assert names[0].name == Toolchain().library(tmp_path).name
    assert len(set(names)) == 3


@needs_kernels
def test_the_kernels_are_loaded_once_from_where_they_were_built() -> None:
    """The second call compiles nothing."""
    assert find_kernels().Pool(2).threads == 2
