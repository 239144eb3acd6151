from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

MODULES = ("ops", "scans", "peers", "bench", "steps", "numerics", "gpu_check")


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The modules of benchmarks.gpu by name; gpu_check as "check"."""
    modules = {name: importlib.import_module(f"benchmarks.gpu.{name}") for name in MODULES}
    return SimpleNamespace(check=modules.pop("gpu_check"), **modules)
