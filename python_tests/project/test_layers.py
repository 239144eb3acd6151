"""Imports go downward and never in a circle; kernels know no torch; importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import recgrela

PACKAGE = Path(recgrela.__file__).parent

# From the ground up: a module imports from its own entry and from earlier lines, not from others of its line.
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
HEAVY = ("torch", "numpy", "matplotlib", "jsonargparse", "pyarrow")


def layer_of(module: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    return ".".join(module.split(".")[:2])


def modules() -> dict[str, Path]:
    """Path of each module of the package, by its name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path, known: set[str]) -> set[str]:
    """The package's modules that a module imports, anywhere in its text: in functions and for types, too."""
    names = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            # `from package import module` needs the module; `from package import name` needs the package.
            inside = {f"{base}.{alias.name}" for alias in node.names}
            names |= (inside & known) | ({base} if inside - known else set())
    return (names & known) - {module}


def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    found = modules()
    known = {*found, "recgrela._C"}
    return {module: imports(module, path, known) for module, path in found.items()}


def circle(edges: dict[str, set[str]]) -> str:
    """A circle of a graph, or "" if it has none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def wrong_imports(edges: dict[str, set[str]]) -> list[str]:
    """Imports that go to a higher layer or sideways."""
    return [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in sorted(others)
        if layer_of(other) != layer_of(module) and RANK[layer_of(other)] >= RANK[layer_of(module)]
    ]


def test_every_module_has_a_layer() -> None:
    assert [module for module in modules() if layer_of(module) not in RANK] == []


def test_imports_go_downward() -> None:
    assert wrong_imports(graph()) == []


def test_no_circle_of_modules() -> None:
    assert circle(graph()) == ""


def test_the_checks_find_mistakes() -> None:
    edges = {"recgrela.nn.basic": {"recgrela.data.load"}, "recgrela.ops.mlp": {"recgrela.system.files"}}
    assert wrong_imports(edges) == [
        "recgrela.nn.basic imports recgrela.data.load",
        "recgrela.ops.mlp imports recgrela.system.files",
    ]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})


def test_importing_the_package_is_cheap() -> None:
    loaded = f"import sys, recgrela; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True).strip() == "[]"


def test_kernels_know_no_torch() -> None:
    root = PACKAGE.parent / "csrc"
    if not root.exists():
        pytest.skip(f"no sources beside the package in {PACKAGE}")
    sources = [p for folder in ("cpu", "kernels") for p in (root / folder).rglob("*") if p.is_file()]
    assert sources
    words = ("torch/", "ATen", "c10", "Python.h", "csrc/ops", '"ops/', '"../ops', "../../ops")
    found = [f"{p.relative_to(root)}: {w}" for p in sources for w in words if w in p.read_text()]
    assert found == []
