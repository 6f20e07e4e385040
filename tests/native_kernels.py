"""The CPU kernels for tests, built once; what needs them is skipped where the CPU cannot run them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.native.build import KernelsUnavailableError, load_kernels
from penstock.engine.settings import EngineSettings


@cache
def find_kernels() -> Any:
    """The kernels from the user's own cache; raises KernelsUnavailableError."""
    return load_kernels(Path(EngineSettings().kernel_cache))


def _why_not() -> str:
    try:
        find_kernels()
    except KernelsUnavailableError as error:
        return str(error)
    return ""


needs_kernels = pytest.mark.skipif(bool(_why_not()), reason=_why_not())
# For tests that hold on PyTorch's operations and on the kernels alike.
EITHER = [pytest.param("torch"), pytest.param("native", marks=needs_kernels)]


def kernels_here() -> list[str]:
    """What can compute on this machine."""
    return ["torch"] if _why_not() else ["torch", "native"]
