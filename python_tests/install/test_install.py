"""Real pip, build and uv install the package from its sdist into real environments, and the result runs.

Takes minutes and downloads build requirements, so it runs only with RECGRELA_TEST_INSTALL=1. The environments
see the torch of the environment that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from build_backend.toolkit import Toolkit, find_toolkits

ROOT = Path(__file__).parents[2]
ONE_ARCHITECTURE = "9.0"
# The operators whose kernels these tests compile with nvcc. All of them take many minutes.
COMPILED = ("causal_conv1d_step", "dropout", "gated_rela_step", "selective_scan_step")

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("RECGRELA_TEST_INSTALL") != "1",
        reason="set RECGRELA_TEST_INSTALL=1 (minutes, network)",
    ),
    pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA"),
]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unpacked sdist, which the tests compile.

    It is changed so that toolkits are found on PATH only, and so that few kernels are compiled with nvcc.
    """
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT, cwd=folder)
    (file,) = folder.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    file.unlink()
    (unpacked,) = folder.iterdir()
    toolkit = unpacked / "build_backend" / "toolkit.py"
    text = toolkit.read_text()
    hidden = text.replace('DEFAULT_HOMES = ("/usr/local/cuda", "/opt/cuda")', "DEFAULT_HOMES = ()")
    assert hidden != text
    toolkit.write_text(hidden)
    assert files_below(unpacked / "csrc") == files_below(ROOT / "csrc")
    for kernels in (unpacked / "csrc" / "kernels").iterdir():
        if kernels.name not in (*COMPILED, "common"):
            shutil.rmtree(kernels)
    for operator in (unpacked / "csrc" / "ops").glob("*_cuda.cpp"):
        if operator.name.removesuffix("_cuda.cpp") not in COMPILED:
            operator.unlink()
    yield unpacked
    shutil.rmtree(folder)  # pytest would keep hundreds of megabytes


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


class Environment:
    """A virtual environment that sees torch."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder, self.source = folder, source
        venv.create(folder / "venv", with_pip=True)
        self.bin = folder / "venv" / "bin"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        site = folder / "venv" / "lib" / version / "site-packages"
        (site / "torch_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        if sys.version_info < (3, 12):  # venv installs an old one
            self.install(self.bin / "python", "-m", "pip", "uninstall", "-q", "-y", "setuptools")

    def variables(self, path: Path | None = None, **more: str) -> dict[str, str]:
        ours = ("CUDA_", "RECGRELA_", "PYTORCH_NVCC", "TORCH_CUDA_", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        folders = [self.bin, *([path] if path else []), Path("/usr/bin"), Path("/bin")]
        return kept | {"PATH": ":".join(map(str, folders))} | more

    def install(self, *command: str | Path, path: Path | None = None, **variables: str) -> str:
        """Runs an installer in the source's folder and returns its output."""
        return run(*command, cwd=self.source, env=self.variables(path, **variables))

    def facts(self) -> Any:
        """The report of `recgrela.env`, run outside the source's folder."""
        command = (self.bin / "python", "-m", "recgrela.env", "--json", "--require", "cpu")
        return json.loads(run(*command, cwd=self.folder, env=self.variables()))

    def location(self) -> Path:
        code = "import recgrela; print(recgrela.__file__)"
        return Path(run(self.bin / "python", "-c", code, cwd=self.folder, env=self.variables()).strip())


@pytest.fixture
def environment(tmp_path: Path, source: Path) -> Environment:
    return Environment(tmp_path, source)


def plan_of(log: str) -> str:
    (line,) = (line.strip() for line in log.splitlines() if line.strip().startswith("recgrela: torch"))
    return line


def packages_in(log: str) -> set[str]:
    """Names of the packages that pip installed, including those for the build."""
    lines = re.findall(r"Installing collected packages: (.*)", log)
    return {name for line in lines for name in line.split(", ")}


def test_torch_without_cuda_and_no_nvcc(environment: Environment) -> None:
    pip = (environment.bin / "python", "-m", "pip")
    log = environment.install(*pip, "install", "-v", "--no-deps", ".")
    assert "without CUDA" in plan_of(log)
    assert f"torch {torch.__version__}" in plan_of(log)
    assert packages_in(log) == {"setuptools", "pybind11", "ninja", "recgrela"}
    facts = environment.facts()
    assert facts["built"]["cuda"] is None and facts["cpu"]["usable"]
    assert environment.folder in environment.location().parents
    for command in (
        [*pip, "install", "-v", "--no-deps", "--no-build-isolation", "-e", "."],
        [shutil.which("uv"), "pip", "install", "-v", "--no-deps", "--reinstall", "--python", pip[0], "."],
        [sys.executable, "-m", "build", "--wheel", "--outdir", environment.folder / "dist"],
    ):
        environment.install(*pip, "uninstall", "-q", "-y", "recgrela")
        log = environment.install(*command)
        if "build" in command:
            (wheel,) = (environment.folder / "dist").glob("*.whl")
            environment.install(*pip, "install", "--no-deps", wheel)
        facts = environment.facts()
        assert facts["built"]["torch"] == torch.__version__ and facts["cpu"]["usable"]
        assert (environment.source in environment.location().parents) == ("-e" in command)


def system_toolkit() -> Toolkit:
    for toolkit in find_toolkits():
        if not toolkit.from_packages:
            return toolkit
    pytest.skip("needs nvcc: on PATH, in CUDA_HOME or /usr/local/cuda")


def test_torch_without_cuda_and_nvcc_on_path(environment: Environment) -> None:
    toolkit = system_toolkit()
    log = environment.install(
        *(environment.bin / "python", "-m", "pip", "install", "-v", "--no-deps", "-e", "."),
        path=toolkit.home / "bin",
        TORCH_CUDA_ARCH_LIST=ONE_ARCHITECTURE,
    )
    assert f"with {toolkit}" in plan_of(log)
    assert packages_in(log) == {"setuptools", "pybind11", "ninja", "recgrela"}
    facts = environment.facts()
    assert facts["built"]["cuda"] == toolkit.release
    assert facts["built"]["cuda_architectures"] == [ONE_ARCHITECTURE]


def test_torch_without_cuda_and_nvcc_from_the_index(environment: Environment) -> None:
    # The other test's objects, of the same nvcc release, are reused; this nvcc compiles one source.
    next((environment.source / "csrc" / "kernels").rglob("*.cu")).touch()
    log = environment.install(
        *(environment.bin / "python", "-m", "pip", "install", "-v", "--no-deps", "."),
        RECGRELA_CUDA="1",
        TORCH_CUDA_ARCH_LIST=ONE_ARCHITECTURE,
    )
    assert "cuda-toolkit" in packages_in(log) and "torch" not in packages_in(log)
    assert "with nvcc 13.0" in plan_of(log)
    facts = environment.facts()
    assert facts["built"]["cuda"] == "13.0" and facts["cpu"]["usable"]


def test_a_failure_is_a_message_without_a_traceback(environment: Environment) -> None:
    command = [environment.bin / "python", "-m", "pip", "install", "--no-deps", "."]
    variables = environment.variables(RECGRELA_CUDA="1", CUDA_HOME="/none")
    done = subprocess.run(command, cwd=environment.source, env=variables, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "recgrela cannot be built: CUDA_HOME=/none" in output and "To fix it" in output
    assert "Traceback" not in output
