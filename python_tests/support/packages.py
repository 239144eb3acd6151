"""Stand-ins for packages that are not installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


def install(monkeypatch: pytest.MonkeyPatch, path: str, **attributes: Any) -> None:
    """Puts a module with the given attributes into sys.modules for one test, with its parent packages."""
    parts = path.split(".")
    for i in range(len(parts)):
        module = ModuleType(".".join(parts[: i + 1]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in attributes.items():
        setattr(module, name, value)
