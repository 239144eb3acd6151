"""Imports and includes go downward and never in a circle; kernels know no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import recgrela

PACKAGE = Path(recgrela.__file__).parent

# Lowest layer first: a module imports from its own entry and from earlier lines, not from others of its line.
LAYERS = [
    ["recgrela", "recgrela._C"],
    ["recgrela.ops"],
    ["recgrela.system"],
    ["recgrela.parallel"],
    ["recgrela.settings", "recgrela.store"],
    ["recgrela.nn", "recgrela.data", "recgrela.retrieval"],
    ["recgrela.models"],
    ["recgrela.evaluation"],
    ["recgrela.runs"],
    ["recgrela.training"],
    ["recgrela.inference"],
    [
        "recgrela.train",
        "recgrela.evaluate",
        "recgrela.recommend",
        "recgrela.export",
        "recgrela.items",
        "recgrela.env",
        "recgrela.compare",
        "recgrela.datasets",
        "recgrela.serve",
    ],
    ["recgrela.data.__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
HEAVY = ("torch", "numpy", "matplotlib", "pyarrow")


def layer_of(module: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    return module if module in RANK else ".".join(module.split(".")[:2])


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
    """The modules that each module imports; the package itself imports its public class on first use only."""
    found = modules()
    known = {*found, "recgrela._C"}
    edges = {module: imports(module, path, known) for module, path in found.items()}
    return edges | {"recgrela": set()}


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


# ---- C++ and CUDA sources

CSRC = PACKAGE.parent / "csrc"
needs_csrc = pytest.mark.skipif(not CSRC.exists(), reason=f"no sources beside the package in {PACKAGE}")
# Folders below csrc, and the files below csrc that their sources may include, as patterns.
INCLUDES = {
    "cpu": ("cpu/*",),
    "kernels/common": ("kernels/common/*", "tests/simt/simt.h"),
    "kernels/gated_rela/*": ("kernels/gated_rela/*", "kernels/common/*"),
    "kernels/*": ("{folder}/*", "kernels/common/*"),
    "ops": ("ops/*", "cpu/*.h", "kernels/*/params.h"),
}


def includes(path: Path) -> set[str]:
    """The files below csrc that a source includes, relative to csrc."""
    names = re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.M)
    places = [
        next((p for p in (path.parent / name, CSRC / name) if p.exists()), CSRC / name) for name in names
    ]
    return {place.resolve().relative_to(CSRC.resolve()).as_posix() for place in places}


def wrong_includes(folder: str, found: set[str]) -> list[str]:
    """The includes that a source in a folder may not have."""
    key = next(key for key in INCLUDES if fnmatch(folder, key))
    allowed = [pattern.format(folder=folder) for pattern in INCLUDES[key]]
    return sorted(name for name in found if not any(fnmatch(name, pattern) for pattern in allowed))


def sources() -> dict[str, Path]:
    """The sources of kernels and operators by their path below csrc."""
    found = (path for folder in ("cpu", "kernels", "ops") for path in (CSRC / folder).rglob("*"))
    return {path.relative_to(CSRC).as_posix(): path for path in found if path.is_file()}


@needs_csrc
def test_kernels_know_no_torch() -> None:
    kernels = {name: path for name, path in sources().items() if not name.startswith("ops/")}
    assert kernels
    words = ("torch/", "ATen", "c10", "Python.h")
    assert [f"{name}: {w}" for name, path in kernels.items() for w in words if w in path.read_text()] == []


@needs_csrc
def test_includes_go_downward() -> None:
    wrong = []
    for name, path in sources().items():
        for other in wrong_includes(name.rpartition("/")[0], includes(path)):
            wrong.append(f"{name} includes {other}")
    assert wrong == []


@needs_csrc
def test_no_circle_of_includes() -> None:
    assert circle({name: includes(path) - {name} for name, path in sources().items()}) == ""


def test_the_checks_of_includes_find_mistakes() -> None:
    assert wrong_includes("cpu", {"cpu/vec.inl", "ops/cpu.h"}) == ["ops/cpu.h"]
    assert wrong_includes("kernels/common", {"kernels/gated_rela/plan.cuh"}) == [
        "kernels/gated_rela/plan.cuh"
    ]
    assert wrong_includes("kernels/linear_scan", {"kernels/common/params.h", "cpu/common.h"}) == [
        "cpu/common.h"
    ]
    assert wrong_includes("ops", {"kernels/linear_scan/params.h", "kernels/common/tile.cuh"}) == [
        "kernels/common/tile.cuh"
    ]
