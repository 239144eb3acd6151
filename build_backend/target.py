"""The torch that a build compiles against.

The library uses libtorch's stable ABI, so any torch from 2.10 on will do; the one of the environment that the
package is installed into says besides whether CUDA is wanted, and of which major version. An isolated build
does not see that environment, but can find it:

- pip runs the build with the environment's own interpreter and hides its packages: without the variables that
  hide them it sees them again;
- uv and build run it in an environment of their own, with its programs first on PATH: the next python on PATH
  is that of the environment that was active. uv takes .venv where none was;
- RECGRELA_TARGET_PYTHON names an environment or its interpreter, where none of this tells it.
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

# The folders of environments that uv and build make for a build.
OF_A_TOOL = re.compile(r"/((?P<uv>builds-v\d+)/[^/]+|build-env-[^/]+)/?$")
VERSION = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
# Prints torch's file, and where its interpreter looks for packages; not in the current folder.
PROBE = """
import importlib.util, json, sys
sys.path = [p for p in sys.path if p]
spec = importlib.util.find_spec("torch")
here = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
print(json.dumps({"origin": spec and spec.origin, "path": sys.path, "python": here}))
"""


@dataclass(frozen=True)
class Torch:
    """A torch package that was found, not imported."""

    version: str
    cuda: str | None  # such as "13.0"; None of a build without CUDA
    folder: Path
    search_path: tuple[str, ...] = ()  # where its dependencies are; empty: where this process looks anyway

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
    """The torch whose __init__.py this is, from its version.py."""
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
    """What an interpreter says of itself outside of an isolated build; None if that is no interpreter."""
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")
    environ = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        done = subprocess.run([python, "-c", PROBE], env=environ, capture_output=True, text=True)
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None
    return said


def _probe(python: Path) -> Torch | None:
    """The torch that an interpreter imports, if it is of this one's version."""
    said = _ask(python)
    if said is None or said["python"] != VERSION:
        return None
    return _read(said["origin"], tuple(said["path"]))


def _named(name: str) -> Torch | None:
    """The torch of the environment that RECGRELA_TARGET_PYTHON names."""
    python = Path(name) / "bin" / "python" if Path(name).is_dir() else Path(name)
    said = _ask(python)
    remedy = "name an environment for this version of Python, or unset it"
    if said is None:
        raise BuildError(f"RECGRELA_TARGET_PYTHON={name} is no Python", remedy)
    if said["python"] != VERSION:
        raise BuildError(f"RECGRELA_TARGET_PYTHON={name} is {said['python']}, this is {VERSION}", remedy)
    return _read(said["origin"], tuple(said["path"]))


def _next_python() -> Path | None:
    """The first python on PATH that is not of this environment."""
    own = Path(sys.prefix).resolve()
    for folder in map(Path, filter(None, os.environ.get("PATH", "").split(os.pathsep))):
        if own in folder.resolve().parents:
            continue
        for name in ("python", "python3"):
            if (folder / name).is_file() and os.access(folder / name, os.X_OK):
                return folder / name
    return None


def _python_of_uv() -> Path | None:
    """That of UV_PROJECT_ENVIRONMENT or .venv, in the folder where uv was started or above."""
    here = Path(os.environ.get("PWD") or os.getcwd())
    name = os.environ.get("UV_PROJECT_ENVIRONMENT") or ".venv"
    pythons = (folder / name / "bin" / "python" for folder in (here, *here.parents))
    return next((python for python in pythons if python.is_file()), None)


def find_torch() -> Torch | None:
    """The torch that this process imports, else that of the environment built for; None if there is none."""
    spec = importlib.util.find_spec("torch")
    if spec and (torch := _read(spec.origin)):
        return torch
    if named := os.environ.get("RECGRELA_TARGET_PYTHON"):
        return _named(named)
    if torch := _probe(Path(sys.executable)):
        return torch
    made_by = OF_A_TOOL.search(sys.prefix)
    if made_by is None:
        return None
    python = _next_python()
    prefix, conda = python.parents[1] if python else None, os.environ.get("CONDA_PREFIX")
    is_sure = prefix is not None and (str(prefix) == conda or (prefix / "pyvenv.cfg").exists())
    if not is_sure and made_by["uv"] and (of_uv := _python_of_uv()):
        python, is_sure = of_uv, True
    torch = _probe(python) if python else None
    # A guess may save a download, as of a container's own torch; it may not lead to a build without CUDA.
    return torch if is_sure or (torch and torch.cuda) else None


def import_torch(torch: Torch) -> None:
    """Imports torch and torch.utils.cpp_extension, wherever they are.

    The packages beside a torch of another environment stay out of sight afterwards: setuptools would take
    their plugins for its own.
    """
    before = list(sys.path)
    sys.path += [folder for folder in torch.search_path if folder not in sys.path]
    try:
        importlib.import_module("torch.utils.cpp_extension")
    except ImportError as error:
        raise BuildError(
            f"{torch} does not import: {error}", "install torch anew: pip install --force-reinstall torch"
        ) from error
    finally:
        sys.path[:] = before
