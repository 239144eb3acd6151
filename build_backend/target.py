"""Finds the torch that a build compiles against.

The library uses libtorch's stable ABI, so any torch >= 2.10 works. The torch of the environment that the
package is installed into also determines whether CUDA is wanted, and which major version. An isolated build
does not have that environment's packages, but can find them:

- pip runs the build with the environment's interpreter and environment variables that hide its packages.
  Without these variables the interpreter finds them.
- uv and build run it in a new environment, with its programs first on PATH. The next python on PATH belongs
  to the environment that was active. If none was active, uv uses .venv.
- RECGRELA_TARGET_PYTHON names an environment or its interpreter if none of this works.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_backend.errors import BuildError

MIN_TORCH = (2, 10)
TORCH_REQUIREMENT = "torch>=2.10"

# Prefixes of the environments that uv and build create for a build.
BUILD_ENVIRONMENT = re.compile(r"/((?P<uv>builds-v\d+)/[^/]+|build-env-[^/]+)/?$")
VERSION = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
# Prints torch's file and the interpreter's search path, without the current folder.
PROBE = """
import importlib.util, json, sys
sys.path = [p for p in sys.path if p]
spec = importlib.util.find_spec("torch")
here = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
print(json.dumps({"origin": spec and spec.origin, "path": sys.path, "python": here}))
"""


@dataclass(frozen=True)
class Torch:
    """A torch package that was found but not imported."""

    version: str
    cuda: str | None  # such as "13.0"; None for a torch without CUDA
    folder: Path
    search_path: tuple[str, ...] = ()  # folders of its dependencies; empty if they are on sys.path

    @property
    def is_supported(self) -> bool:
        return tuple(map(int, re.findall(r"\d+", self.version)[:2])) >= MIN_TORCH

    @property
    def cuda_major(self) -> int | None:
        return int(self.cuda.split(".")[0]) if self.cuda else None

    def __str__(self) -> str:
        cuda = f"CUDA {self.cuda}" if self.cuda else "no CUDA"
        return f"torch {self.version} ({cuda}) in {self.folder.parent}"


def _read(origin: str | None, search_path: tuple[str, ...] = ()) -> Torch | None:
    """Reads the version of a torch from its version.py, beside the __init__.py `origin`."""
    if origin is None or not (file := Path(origin).parent / "version.py").exists():
        return None
    values: dict[str, object] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                values[target.id] = node.value.value
    version, cuda = values.get("__version__"), values.get("cuda")
    if not isinstance(version, str):
        return None
    return Torch(version, cuda if isinstance(cuda, str) else None, file.parent, search_path)


def _ask(python: Path) -> dict[str, Any] | None:
    """Runs PROBE in an interpreter, without the variables of an isolated build; None if it fails."""
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")
    environ = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        done = subprocess.run([python, "-c", PROBE], env=environ, capture_output=True, text=True)
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None
    return answer


def _probe(python: Path) -> Torch | None:
    """Returns the torch of another interpreter, if that has this Python's version."""
    answer = _ask(python)
    if answer is None or answer["python"] != VERSION:
        return None
    return _read(answer["origin"], tuple(answer["path"]))


def _named(name: str) -> Torch | None:
    """Returns the torch of the environment `name`, given by RECGRELA_TARGET_PYTHON.

    Raises:
        BuildError: It is not an environment for this version of Python.
    """
    python = Path(name) / "bin" / "python" if Path(name).is_dir() else Path(name)
    answer = _ask(python)
    remedy = "set it to an environment for this version of Python, or unset it"
    if answer is None:
        raise BuildError(f"RECGRELA_TARGET_PYTHON={name} is not a Python environment", remedy)
    if answer["python"] != VERSION:
        raise BuildError(
            f"RECGRELA_TARGET_PYTHON={name} is {answer['python']}; the build runs in {VERSION}", remedy
        )
    return _read(answer["origin"], tuple(answer["path"]))


def _next_python() -> Path | None:
    """Returns the first python on PATH outside this environment."""
    own = Path(sys.prefix).resolve()
    for folder in map(Path, filter(None, os.environ.get("PATH", "").split(os.pathsep))):
        if own in folder.resolve().parents:
            continue
        for name in ("python", "python3"):
            if (folder / name).is_file() and os.access(folder / name, os.X_OK):
                return folder / name
    return None


def _python_of_uv() -> Path | None:
    """Returns the python of UV_PROJECT_ENVIRONMENT or .venv, in the folder where uv started or a parent."""
    here = Path(os.environ.get("PWD") or os.getcwd())
    name = os.environ.get("UV_PROJECT_ENVIRONMENT") or ".venv"
    pythons = (folder / name / "bin" / "python" for folder in (here, *here.parents))
    return next((python for python in pythons if python.is_file()), None)


def find_torch() -> Torch | None:
    """Returns the torch that this process imports, or that of the target environment, if there is one."""
    spec = importlib.util.find_spec("torch")
    if spec and (torch := _read(spec.origin)):
        return torch
    if named := os.environ.get("RECGRELA_TARGET_PYTHON"):
        return _named(named)
    if torch := _probe(Path(sys.executable)):
        return torch
    isolated = BUILD_ENVIRONMENT.search(sys.prefix)
    if isolated is None:
        return None
    python = _next_python()
    prefix, conda = python.parents[1] if python else None, os.environ.get("CONDA_PREFIX")
    is_sure = prefix is not None and (str(prefix) == conda or (prefix / "pyvenv.cfg").exists())
    if not is_sure and isolated["uv"] and (of_uv := _python_of_uv()):
        python, is_sure = of_uv, True
    torch = _probe(python) if python else None
    # A guessed environment, for example a container's, may save a download of torch, but must not lead to a
    # build without CUDA.
    return torch if is_sure or (torch and torch.cuda) else None


def import_torch(torch: Torch) -> None:
    """Imports torch and torch.utils.cpp_extension from their search path.

    The search path is removed afterwards, because setuptools would load plugins of other packages in it.

    Raises:
        BuildError: torch cannot be imported.
    """
    before = list(sys.path)
    sys.path += [folder for folder in torch.search_path if folder not in sys.path]
    try:
        importlib.import_module("torch.utils.cpp_extension")
    except ImportError as error:
        raise BuildError(
            f"{torch} cannot be imported: {error}", "reinstall it: pip install --force-reinstall torch"
        ) from error
    finally:
        sys.path[:] = before
