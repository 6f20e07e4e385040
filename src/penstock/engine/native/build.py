"""Compiles the kernels for this machine's CPU, once, and loads them from a cache afterwards.

The library's name is a hash of everything it depends on, and it appears under that name only when it is
whole: processes that start together may build it twice, but none waits for a lock that a killed one left.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import logging
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


class KernelsUnavailableError(Exception):
    """Why there are no kernels here; the engine then runs on PyTorch's."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What the kernels are built from and with."""

    sources: Path = SOURCES
    compilers: tuple[str, ...] = ("c++", "g++", "clang++")
    """Looked for in this order."""
    cpu_flags: frozenset[str] = field(default_factory=lambda: _cpu_flags())

    def library(self, cache: Path) -> Path:
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
    library = toolchain.library(cache)
    try:
        if not library.exists():
            _build(library, toolchain)
    except OSError as error:
        raise KernelsUnavailableError(f"the kernels cannot be built in {cache}: {error}") from error
    return _load(library)


def _load(library: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(library))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise KernelsUnavailableError(
            f"{library} cannot be loaded: {error}; delete it to build it again"
        ) from error
    return module


def _build(library: Path, toolchain: Toolchain) -> None:
    compiler = next((found for name in toolchain.compilers if (found := shutil.which(name))), None)
    if compiler is None:
        names = ", ".join(toolchain.compilers)
        raise KernelsUnavailableError(f"there is no C++ compiler here (looked for {names})")
    started = time.perf_counter()
    logger.info("building the CPU kernels, once for this machine", extra={"path": str(library)})
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
    logger.info("CPU kernels built", extra={"seconds": round(time.perf_counter() - started, 1)})


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
