"""Each layer imports only downward, and nothing heavy happens where it should not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import recgrela

PACKAGE = Path(recgrela.__file__).parent

# From the ground up: a module may import from its own folder and from those before it in this list.
LAYERS = [
    ["recgrela", "recgrela._C"],
    ["recgrela.ops"],
    ["recgrela.system"],
    ["recgrela.settings"],
    ["recgrela.nn", "recgrela.data"],
    ["recgrela.models"],
    ["recgrela.evaluation"],
    ["recgrela.runs"],
    ["recgrela.training"],
    ["recgrela.train", "recgrela.evaluate", "recgrela.recommend", "recgrela.env", "recgrela.compare"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def layer_of(module: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2])


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    known = {*modules(), "recgrela._C"}
    return {name for name in names if name in known}


def test_imports_go_downward() -> None:
    wrong = []
    for module, path in modules().items():
        assert layer_of(module) in RANK, f"{module} has no layer"
        for other in imports(path):
            if RANK[layer_of(other)] > RANK[layer_of(module)]:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_kernels_know_no_torch() -> None:
    root = PACKAGE.parent / "csrc"
    if not root.exists():
        pytest.skip(f"no sources beside the package in {PACKAGE}")
    sources = [p for folder in ("cpu", "kernels") for p in (root / folder).rglob("*") if p.is_file()]
    assert sources
    assert not [p for p in sources if "torch/" in p.read_text()]
