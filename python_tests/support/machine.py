"""Simulated machines: folders with the toolkits, compilers and Python environments that a build finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from python_tests.support.project import ROOT

NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  --list-gpu-code) printf 'sm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_100\\n' ;;
  *) echo "{words}" >&2; exit {code} ;;
esac
"""
# The build must not find the real machine's toolkits or the torch that runs the tests.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from build_backend import plan, toolkit
toolkit.DEFAULT_HOMES = (sys.argv[2],)
if sys.argv[3] == "requirements":
    answer = plan.requirements()
else:
    made = plan.make_plan()
    answer = {"torch": made.torch.version, "toolkit": made.toolkit and made.toolkit.release,
              "archs": [str(arch) for arch in made.archs], "jobs": made.jobs, "text": str(made)}
print(json.dumps(answer))
"""


def make_toolkit(home: Path, release: str, code: int = 0, words: str = "") -> Path:
    """Makes a CUDA toolkit. Its nvcc prints the release, and compiles by printing `words` and exiting."""
    for folder in ("bin", "include", "lib64"):
        (home / folder).mkdir(parents=True)
    (home / "include" / "cuda_runtime.h").touch()
    (home / "lib64" / "libcudart_static.a").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(release=release, code=code, words=words))
    nvcc.chmod(0o755)
    return home


def write_program(file: Path, text: str = "#!/bin/sh\n") -> None:
    file.write_text(text)
    file.chmod(0o755)


class Machine:
    """A machine with the real C++ compiler, a fake ninja, an empty Python environment and no nvcc."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        compiler = shutil.which("c++")
        assert compiler, "the tests of the build need a C++ compiler c++"
        (self.bin / "c++").symlink_to(compiler)
        write_program(self.bin / "ninja")
        self.default_home = root / "usr" / "cuda"
        self.environment = root / "environment"
        venv.create(self.environment)
        self.python = self.environment / "bin" / "python"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.site = self.environment / "lib" / version / "site-packages"
        self.add_package("pybind11")
        self.variables = {"PATH": f"{self.bin}:/bin:/usr/bin"}  # the compiler needs as and ld

    def add_package(self, name: str, **files: str) -> None:
        (self.site / name).mkdir(parents=True)
        (self.site / name / "__init__.py").touch()
        for file, text in files.items():
            (self.site / name / f"{file}.py").write_text(text)

    def with_torch(self, version: str, cuda: str | None = None) -> Machine:
        text = f"from typing import Optional\n__version__ = {version!r}\ncuda: Optional[str] = {cuda!r}\n"
        self.add_package("torch", version=text)
        return self

    def with_nvcc(self, release: str, **what: Any) -> Machine:
        """Adds a toolkit whose nvcc is on PATH."""
        home = make_toolkit(self.root / f"cuda-{release}", release, **what)
        (self.bin / "nvcc").symlink_to(home / "bin" / "nvcc")
        return self

    def with_packages(self, release: str) -> Machine:
        """Adds nvcc as a Python package in the environment."""
        make_toolkit(self.site / "nvidia" / f"cu{release.split('.')[0]}", release)
        return self

    def with_variables(self, **variables: str) -> Machine:
        self.variables |= variables
        return self

    def ask(self, what: str) -> Any:
        """The answer of `plan.requirements` or `plan.make_plan`, or the error message."""
        command = [str(self.python), "-c", DRIVER, str(ROOT), str(self.default_home), what]
        environ = {name: value for name, value in os.environ.items() if name in ("HOME", "LD_LIBRARY_PATH")}
        done = subprocess.run(
            list(map(str, command)),
            env=environ | self.variables,
            capture_output=True,
            text=True,
            cwd=self.root,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr if done.returncode else json.loads(done.stdout)

    def requirements(self) -> Any:
        return self.ask("requirements")

    def plan(self) -> Any:
        return self.ask("plan")
