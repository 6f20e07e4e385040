"""Compiles the kernels for this machine's CPU, once, and loads them from a cache afterwards.

The library's name is a hash of what it is made from and for, and it appears under that name only when it is
whole: processes that start together may build it twice, but none waits for a lock that a killed one left.
What cannot be loaded, as in a folder shared with a machine of other system libraries, is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pybind11

logger = logging.getLogger(__name__)

NAME = "penstock_kernels"
SOURCES = Path(__file__).parent / "csrc"
# Instructions that the kernels use, by their names in /proc/cpuinfo.
REQUIRED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "f16c", "fma"})
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# gcc 12 warns about its own AVX-512 headers.
QUIET = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")
COMPILE_TIMEOUT_S = 600
# A folder of objects that is older belongs to a build that was killed.
STALE_AFTER_S = 2 * COMPILE_TIMEOUT_S
# Libraries that stay in the cache, the latest used first: of other versions, other interpreters, other CPUs.
KEPT_LIBRARIES = 8


class KernelsUnavailableError(Exception):
    """Why there are no kernels here; the engine then runs on PyTorch's."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What the kernels are built from and with."""

    sources: Path = SOURCES
    compilers: tuple[str, ...] = ("c++", "g++", "clang++")
    """Looked for in this order."""
    cpu_flags: frozenset[str] = field(default_factory=lambda: _cpu_flags())

    def built_path(self, cache: Path) -> Path:
        """Where the built kernels lie: the name changes with sources, flags, CPU and interpreter."""
        digest = hashlib.sha256()
        for source in sorted(self.sources.iterdir()):
            digest.update(source.name.encode() + source.read_bytes())
        abi = sysconfig.get_config_var("SOABI") or ""
        for text in (*FLAGS, *QUIET, *sorted(self.cpu_flags), platform.machine(), abi):
            digest.update(text.encode() + b"\0")
        return cache / f"{NAME}-{digest.hexdigest()[:16]}{importlib.machinery.EXTENSION_SUFFIXES[0]}"


def load_kernels(cache: Path, toolchain: Toolchain | None = None) -> ModuleType:
    """The kernels as a module, built into `cache` if they are not there yet (some 20 seconds).

    Raises:
        KernelsUnavailableError: the CPU lacks instructions, there is no compiler, or it failed.
    """
    toolchain = toolchain or Toolchain()
    if missing := sorted(REQUIRED - toolchain.cpu_flags):
        raise KernelsUnavailableError(f"this CPU lacks {', '.join(missing)}")
    try:
        library = toolchain.built_path(cache.expanduser())
        if library.exists():
            try:
                return _load(library)
            except ImportError as error:
                logger.warning("the CPU kernels cannot be loaded", extra={"error": str(error)})
        _build(library, toolchain)
        return _load(library)
    except ImportError as error:
        raise KernelsUnavailableError(f"the kernels cannot be loaded: {error}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise KernelsUnavailableError(f"the kernels cannot be built in {cache}: {error}") from error


def _load(library: Path) -> ModuleType:
    with contextlib.suppress(OSError):  # the folder may be readable only
        os.utime(library)
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(library))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _build(library: Path, toolchain: Toolchain) -> None:
    compiler = next((found for name in toolchain.compilers if (found := shutil.which(name))), None)
    if compiler is None:
        names = ", ".join(toolchain.compilers)
        raise KernelsUnavailableError(f"there is no C++ compiler here (looked for {names})")
    started = time.perf_counter()
    logger.info(
        "building the CPU kernels, once for this machine; this takes some 20 seconds",
        extra={"path": str(library)},
    )
    library.parent.mkdir(parents=True, exist_ok=True)
    include = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:

        def compile_one(source: Path) -> Path:
            target = Path(folder) / f"{source.stem}.o"
            _run([compiler, *FLAGS, *QUIET, *include, "-c", str(source), "-o", str(target)])
            return target

        with ThreadPoolExecutor(max_workers=2) as pool:
            objects = list(pool.map(compile_one, sorted(toolchain.sources.glob("*.cpp"))))
        linked = Path(folder) / library.name
        _run([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(linked)])
        linked.replace(library)
    _tidy(library.parent)
    logger.info("CPU kernels built", extra={"seconds": round(time.perf_counter() - started, 1)})


def _tidy(cache: Path) -> None:
    """Removes what killed builds left, and libraries that were not used for longest."""
    with contextlib.suppress(OSError):  # another process may be tidying too
        for folder in cache.glob("build-*"):
            if folder.stat().st_mtime < time.time() - STALE_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
        libraries = sorted(cache.glob(f"{NAME}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for library in libraries[KEPT_LIBRARIES:]:
            library.unlink()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise KernelsUnavailableError(f"{command[0]} did not end within {COMPILE_TIMEOUT_S} s") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:400])
        raise KernelsUnavailableError(f"{command[0]} failed on the kernels: {first}")


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", errors="replace")
    except OSError:  # not Linux
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())
