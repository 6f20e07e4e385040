"""The kernels are built once, appear whole, and say what is missing."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from native_kernels import find_kernels, needs_kernels
from penstock.engine.native.build import NAME, SOURCES, KernelsUnavailableError, Toolchain, load_kernels

STRANGE_CPU = frozenset({"avx512f", "fma"})
# A module that does nothing and is compiled in a moment.
EMPTY_MODULE = f"""
#include <Python.h>
static PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "{NAME}", nullptr, -1, nullptr}};
PyMODINIT_FUNC PyInit_{NAME}() {{ return PyModule_Create(&definition); }}
"""


@pytest.fixture
def module(tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    """A toolchain for an empty module."""
    sources = tmp_path_factory.mktemp("sources")
    (sources / "module.cpp").write_text(EMPTY_MODULE)
    return Toolchain(sources=sources)


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
def test_a_library_that_cannot_be_loaded_is_built_anew(tmp_path: Path, module: Toolchain) -> None:
    """As one that a machine with other system libraries left in a shared folder."""
    module.built_path(tmp_path).write_bytes(b"not a library")
    assert load_kernels(tmp_path, module).__name__ == NAME


@needs_kernels
def test_sources_that_make_no_module_are_said(tmp_path: Path) -> None:
    """After the build, which is not tried for ever."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "empty.cpp").write_text("")
    with pytest.raises(KernelsUnavailableError, match="cannot be loaded"):
        load_kernels(tmp_path / "cache", Toolchain(sources=sources))


@needs_kernels
def test_processes_that_start_together_do_not_disturb_each_other(tmp_path: Path, module: Toolchain) -> None:
    """Each builds in a folder of its own, and nothing else stays."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_kernels(tmp_path, module), range(4)))
    assert [kernels.__name__ for kernels in found] == [NAME] * 4
    assert list(tmp_path.iterdir()) == [module.built_path(tmp_path)]


@needs_kernels
def test_the_cache_does_not_grow_for_ever(tmp_path: Path, module: Toolchain) -> None:
    """What a killed build left goes, and the libraries unused for longest; a build in progress stays."""
    for age in range(1, 20):
        for name in (f"{NAME}-{age:016x}.so", f"build-{age}"):
            path = tmp_path / name
            path.write_bytes(b"") if name.endswith(".so") else path.mkdir()
            os.utime(path, (time.time() - age * 300,) * 2)
    load_kernels(tmp_path, module)
    libraries = {path.name for path in tmp_path.glob(f"{NAME}-*")}
    assert libraries == {module.built_path(tmp_path).name, *(f"{NAME}-{age:016x}.so" for age in range(1, 8))}
    assert {path.name for path in tmp_path.glob("build-*")} == {f"build-{age}" for age in range(1, 4)}


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
    names = [Toolchain(sources=other).built_path(tmp_path)]
    (other / "pool.cpp").write_bytes((other / "pool.cpp").read_bytes() + b" ")
    names += [
        Toolchain(sources=other).built_path(tmp_path),
        Toolchain(cpu_flags=STRANGE_CPU).built_path(tmp_path),
    ]
    assert names[0].name == Toolchain().built_path(tmp_path).name
    assert len(set(names)) == 3


@needs_kernels
def test_the_kernels_are_loaded_once_from_where_they_were_built() -> None:
    """The second call compiles nothing."""
    assert find_kernels().Pool(2).threads == 2
