"""The torch that a build compiles against, in the environments that uv and build create."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from python_tests.support.machine import Machine, write_program
from python_tests.support.project import ROOT

UV, BUILD = "/cache/builds-v0/.tmpabc", "/tmp/build-env-abc"
DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from build_backend import target
sys.prefix = sys.argv[2]
torch = target.find_torch()
print(torch.version if torch else None)
"""


def found(machine: Machine, prefix: str, *path: Path, cwd: Path | None = None, **variables: str) -> str:
    """The version of the torch that is found by a build in an environment without one."""
    cwd = cwd or machine.root
    environ = {"PATH": ":".join(map(str, [*path, "/bin"])), "PWD": str(cwd), **variables}
    environ |= {name: os.environ[name] for name in ("HOME", "LD_LIBRARY_PATH") if name in os.environ}
    command = [str(machine.python), "-c", DRIVER, str(ROOT), prefix]
    done = subprocess.run(command, env=environ, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def target(tmp_path: Path) -> Machine:
    """The environment that the package is installed into."""
    (tmp_path / "target").mkdir()
    return Machine(tmp_path / "target")


@pytest.mark.parametrize("prefix", [UV, BUILD])
def test_the_active_environment(machine: Any, target: Machine, prefix: str) -> None:
    target.with_torch("2.13.0+cpu")
    assert found(machine, prefix, target.environment / "bin") == "2.13.0+cpu"


@pytest.mark.parametrize(("cuda", "expected"), [("13.0", "2.13.0"), (None, "None")])
def test_a_python_on_path_outside_environments(
    machine: Any, target: Machine, cuda: str | None, expected: str
) -> None:
    # It may be a container's, which saves a download; but a guess must not lead to a build without CUDA.
    target.with_torch("2.13.0", cuda)
    (target.root / "usr").mkdir()
    write_program(target.root / "usr/python", f'#!/bin/sh\nexec {target.python} "$@"\n')
    assert found(machine, UV, target.root / "usr") == expected


@pytest.mark.parametrize(("prefix", "expected"), [(UV, "2.13.0+cpu"), (BUILD, "None")])
def test_the_environment_that_uv_selects(machine: Any, target: Machine, prefix: str, expected: str) -> None:
    target.with_torch("2.13.0+cpu")
    (target.root / "project/below").mkdir(parents=True)
    (target.root / "project/.venv").symlink_to(target.environment)
    assert found(machine, prefix, cwd=target.root / "project/below") == expected


def test_other_environments_do_not_search_further(machine: Any, target: Machine) -> None:
    target.with_torch("2.13.0+cpu")
    assert found(machine, str(machine.environment), target.environment / "bin") == "None"


def test_the_environment_of_another_python_is_ignored(machine: Any, target: Machine) -> None:
    target.with_torch("2.13.0+cpu")
    other = '{"origin": null, "path": [], "python": "cpython 3.9"}'
    target.python.unlink()
    write_program(target.python, f"#!/bin/sh\necho '{other}'\n")
    assert found(machine, UV, target.environment / "bin") == "None"
