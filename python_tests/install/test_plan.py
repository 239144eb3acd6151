"""Requirements, plan and errors of a build, on simulated machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from build_backend import architectures
from build_backend.compilers import available_memory
from build_backend.errors import BuildError
from build_backend.toolkit import PACKAGES_BESIDE_TORCH
from python_tests.support.machine import make_toolkit

TOOLKIT = "cuda-toolkit[nvcc,crt,nvvm,cccl,cudart]"
CUDA_13 = ("2.11.0+cu130", "13.0")
CUDA_12 = ("2.10.0+cu128", "12.8")
CPU = ("2.13.0+cpu", None)


@pytest.mark.parametrize(
    ("torch", "nvcc", "setting", "expected"),
    [
        (CPU, None, "", []),
        (CPU, "13.0", "", []),
        (CPU, None, "0", []),
        (CPU, None, "1", [f"{TOOLKIT}==13.0.*"]),
        (CUDA_13, None, "", [f"{TOOLKIT}==13.0.*"]),
        (CUDA_13, None, "0", []),
        (CUDA_13, "13.2", "", []),
        (CUDA_13, "12.4", "", [f"{TOOLKIT}==13.0.*"]),  # an old toolkit is ignored
        (("2.15.0", "13.2"), None, "", [f"{TOOLKIT}==13.0.*"]),  # the release that most drivers support
        (("3.0.0", "14.1"), None, "", [f"{TOOLKIT}==14.0.*"]),
        (CUDA_12, "12.4", "", []),
        (("2.4.1", "12.1"), "13.0", "", ["torch>=2.10"]),
        (("2.9.1", None), None, "0", ["torch>=2.10"]),
        (None, None, "", ["torch>=2.10", *PACKAGES_BESIDE_TORCH]),
        (None, "12.4", "", ["torch>=2.10", *PACKAGES_BESIDE_TORCH]),
        (None, None, "1", ["torch>=2.10", *PACKAGES_BESIDE_TORCH]),
        (None, "13.0", "", ["torch>=2.10"]),
        (None, None, "0", ["torch>=2.10"]),
    ],
)
def test_requirements(machine: Any, torch: Any, nvcc: Any, setting: str, expected: list[str]) -> None:
    if torch:
        machine.with_torch(*torch)
    if nvcc:
        machine.with_nvcc(nvcc)
    assert machine.with_variables(RECGRELA_CUDA=setting).requirements() == expected


def test_plan_without_cuda(machine: Any) -> None:
    plan = machine.with_torch(*CPU).plan()
    assert (plan["torch"], plan["toolkit"], plan["archs"]) == ("2.13.0+cpu", None, [])
    assert "without CUDA" in plan["text"]


def test_plan_with_nvcc(machine: Any) -> None:
    plan = machine.with_torch(*CPU).with_nvcc("13.0").plan()
    assert (plan["toolkit"], plan["archs"]) == ("13.0", ["8.0", "9.0+PTX"])


def test_cuda_home_comes_before_path(machine: Any) -> None:
    home = machine.with_torch(*CPU).with_nvcc("13.0").root / "elsewhere"
    make_toolkit(home, "13.2")
    assert machine.with_variables(CUDA_HOME=str(home)).plan()["toolkit"] == "13.2"


def test_the_default_home(machine: Any) -> None:
    make_toolkit(machine.default_home, "12.9")
    make_toolkit(machine.default_home.parent / "cuda-13.1", "13.1")
    assert machine.with_torch(*CUDA_13).plan()["toolkit"] == "13.1"  # the one that matches torch


def test_path_comes_before_the_default_home(machine: Any) -> None:
    make_toolkit(machine.default_home.parent / "cuda-13.1", "13.1")
    make_toolkit(machine.default_home.parent / "cuda-12.8", "12.8")
    path = f"{machine.default_home.parent / 'cuda-12.8/bin'}:{machine.variables['PATH']}"
    assert machine.with_torch(*CPU).with_variables(PATH=path).plan()["toolkit"] == "12.8"


def test_the_newest_toolkit_beside_the_default_home(machine: Any) -> None:
    for release in ("12.9", "13.10", "13.2"):
        make_toolkit(machine.default_home.parent / f"cuda-{release}", release)
    assert machine.with_torch(*CPU).plan()["toolkit"] == "13.10"


def test_a_toolkit_that_is_too_old_is_ignored(machine: Any) -> None:
    assert machine.with_torch(*CPU).with_nvcc("11.5").plan()["toolkit"] is None
    assert "only nvcc 11.5" in machine.with_variables(RECGRELA_CUDA="1").plan()


def test_an_nvcc_for_another_architecture_is_ignored(machine: Any) -> None:
    machine.with_torch(*CPU).with_nvcc("13.0")
    (machine.root / "cuda-13.0/bin/nvcc").write_bytes(b"\x7fELF\x00")
    assert machine.plan()["toolkit"] is None


def test_the_environment_that_is_named(machine: Any, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    target = type(machine)(tmp_path / "target").with_torch(*CUDA_13)
    for name in (target.environment, target.python):
        machine.with_variables(RECGRELA_TARGET_PYTHON=str(name))
        assert machine.requirements() == [f"{TOOLKIT}==13.0.*"]
    for name in ("/none", "/bin/sh", str(tmp_path)):
        text = machine.with_variables(RECGRELA_TARGET_PYTHON=name).requirements()
        assert f"RECGRELA_TARGET_PYTHON={name} is not a Python environment" in text


def test_toolkit_packages_are_used_with_torchs_cuda(machine: Any) -> None:
    assert machine.with_torch(*CUDA_13).with_packages("13.0").plan()["toolkit"] == "13.0"


def test_toolkit_packages_are_used_without_torchs_cuda_only_if_asked(machine: Any) -> None:
    # If there was no torch, they were installed together with one, before it was known whether it has CUDA.
    assert machine.with_torch(*CPU).with_packages("13.0").plan()["toolkit"] is None
    assert machine.with_variables(RECGRELA_CUDA="1").plan()["toolkit"] == "13.0"


def test_a_toolkit_in_the_folders_of_conda(machine: Any) -> None:
    home = machine.with_torch(*CUDA_13).with_nvcc("13.0").root / "cuda-13.0"
    (home / "targets/x86_64-linux").mkdir(parents=True)
    (home / "include").rename(home / "targets/x86_64-linux/include")
    (home / "lib64").rename(home / "targets/x86_64-linux/lib")
    assert machine.plan()["toolkit"] == "13.0"


def test_a_link_out_of_the_toolkit(machine: Any) -> None:
    # As on Debian, bin/nvcc beside include and lib is a link to a folder that has only programs.
    usr = make_toolkit(machine.with_torch(*CUDA_13).root / "debian", "13.0")
    programs = machine.root / "programs/bin"
    programs.mkdir(parents=True)
    (usr / "bin/nvcc").rename(programs / "nvcc")
    (usr / "bin/nvcc").symlink_to(programs / "nvcc")
    path = f"{usr / 'bin'}:{machine.variables['PATH']}"
    assert machine.with_variables(PATH=path).plan()["toolkit"] == "13.0"


def test_an_incomplete_toolkit_is_ignored(machine: Any) -> None:
    home = machine.with_torch(*CUDA_13).with_nvcc("13.0").root / "cuda-13.0"
    (home / "lib64" / "libcudart_static.a").unlink()
    assert "no nvcc of CUDA 13" in machine.plan()
    assert machine.requirements() == [f"{TOOLKIT}==13.0.*"]


def test_max_jobs(machine: Any) -> None:
    assert machine.with_torch(*CPU).with_variables(MAX_JOBS="3").plan()["jobs"] == 3


@pytest.mark.parametrize(
    ("prepare", "cause", "remedy"),
    [
        (lambda m: m.with_torch(*CPU).with_variables(CXX="none-such"), "no C++ compiler none-such", "g++"),
        (lambda m: m.with_torch(*CPU).with_variables(CXX="false"), "false does not compile C++17", "GCC 9"),
        (lambda m: m.with_torch(*CUDA_13), "no nvcc of CUDA 13", f"pip install '{TOOLKIT}==13.0.*'"),
        (lambda m: m.with_torch(*CUDA_13), "torch 2.11.0+cu130 (CUDA 13.0)", "RECGRELA_CUDA=0"),
        (lambda m: m.with_torch("2.15.0", "13.2"), "no nvcc of CUDA 13", f"pip install '{TOOLKIT}==13.2.*'"),
        (lambda m: m.with_torch(*CUDA_12), "no nvcc of CUDA 12", "a torch for CUDA 13"),
        (lambda m: m.with_torch(*CUDA_12).with_nvcc("13.0"), "only nvcc 13.0", "CUDA 12"),
        (lambda m: m.with_torch(*CPU).with_variables(RECGRELA_CUDA="1"), "RECGRELA_CUDA=1", "pip install"),
        (lambda m: m.with_torch(*CPU).with_variables(RECGRELA_CUDA="yes"), "RECGRELA_CUDA=yes", "1 builds"),
        (lambda m: m.with_torch(*CPU).with_variables(MAX_JOBS="0"), "MAX_JOBS=0", "1 or more"),
        (lambda m: m.with_torch(*CPU).with_variables(CUDA_HOME="/none"), "CUDA_HOME=/none", "unset it"),
        (
            lambda m: (
                m.with_torch(*CUDA_13).with_nvcc("12.4").with_variables(CUDA_PATH=str(m.root / "cuda-12.4"))
            ),
            "only nvcc 12.4",
            "unset CUDA_PATH",
        ),
        (lambda m: m.with_torch("2.9.1"), "torch 2.9.1", "pip install 'torch>=2.10'"),
        (lambda m: m, "no torch", "pip install 'torch>=2.10'"),
        (
            lambda m: m.with_torch(*CPU).with_nvcc("13.0").with_variables(TORCH_CUDA_ARCH_LIST="9.0;13.7"),
            "does not support 13.7",
            "8.0, 8.6, 9.0, 10.0",
        ),
        (
            lambda m: m.with_torch(*CPU).with_nvcc("13.0").with_variables(TORCH_CUDA_ARCH_LIST="sm_90"),
            "'sm_90'",
            "numbers such as 8.0",
        ),
        (
            lambda m: m.with_torch(*CPU).with_nvcc("13.0").with_variables(TORCH_CUDA_ARCH_LIST="7.5"),
            "no architecture that the kernels support",
            "8.0 or newer",
        ),
        (
            lambda m: m.with_torch(*CPU).with_nvcc("13.0", code=1, words="unsupported GNU version!"),
            "unsupported GNU version!",
            "another C++ compiler",
        ),
    ],
)
def test_failures(machine: Any, prepare: Any, cause: str, remedy: str) -> None:
    text = prepare(machine).plan()
    assert isinstance(text, str), f"it would build: {text}"
    first, _, last = text.rpartition("To fix it: ")
    assert first.startswith("recgrela cannot be built: ")
    assert cause in first and remedy in last


def test_an_isolated_build_fails_before_it_downloads_anything(machine: Any) -> None:
    assert "no C++ compiler" in machine.with_variables(CXX="none-such").requirements()
    assert "no nvcc of CUDA 12" in machine.with_variables(CXX="c++").with_torch(*CUDA_12).requirements()


def test_python_headers(machine: Any) -> None:
    # The second plan imports a sysconfig that simulates an interpreter without headers.
    text = machine.with_torch(*CPU).with_variables(PYTHONPATH=str(machine.root)).plan()
    assert isinstance(text, dict)
    (machine.root / "sysconfig.py").write_text("def get_path(name):\n    return '/none'\n")
    text = machine.plan()
    assert "no Python.h was found in /none" in text
    assert f"python{sys.version_info[0]}.{sys.version_info[1]}-dev" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0;9.0+PTX", "8.0 9.0+PTX"),
        ("8.6 8.9", "8.6 8.9"),
        ("9.0a, 10.0f", "9.0a 10.0f"),
        ("7.0;7.5;8.0", "8.0"),
        ("Ampere+PTX;Hopper", "8.0 8.6+PTX 9.0"),
        ("Volta;Turing;Ada;Ampere+Tegra", "8.9 8.7"),
        ("8.0;8.0", "8.0"),
    ],
)
def test_architectures(text: str, expected: str) -> None:
    assert " ".join(map(str, architectures.parse(text))) == expected


@pytest.mark.parametrize("text", ["", ";", "8", "8.0+ptx", "9.0b", "8.0/9.0"])
def test_bad_architectures(text: str) -> None:
    with pytest.raises(BuildError):
        architectures.parse(text)


def test_flags() -> None:
    (arch,) = architectures.parse("9.0+PTX")
    assert arch.flags == [
        "-gencode",
        "arch=compute_90,code=sm_90",
        "-gencode",
        "arch=compute_90,code=compute_90",
    ]


def test_memory_of_a_control_group(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert available_memory(tmp_path) == 4000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert available_memory(tmp_path) == 4000 * 1024
    (group / "memory.max").write_text("3000\n")
    assert available_memory(tmp_path) == 2000
    (group / "memory.stat").write_text("anon 300\ninactive_file 700\n")
    assert available_memory(tmp_path) == 2700
