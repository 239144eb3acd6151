"""The plan of a build, chosen and checked before anything is compiled."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec

from build_backend import architectures
from build_backend.architectures import Architecture
from build_backend.compilers import check_cxx, check_nvcc, choose_jobs
from build_backend.errors import CPU_ONLY, BuildError
from build_backend.target import TORCH_REQUIREMENT, Torch, find_torch
from build_backend.toolkit import (
    EXPECTED_MAJOR,
    OLDEST_MAJOR,
    PACKAGES_BESIDE_TORCH,
    Toolkit,
    find_toolkits,
    first_release,
    has_packages,
    named_toolkit,
    requirement,
)


@dataclass(frozen=True)
class Plan:
    """A build whose prerequisites have been checked."""

    torch: Torch
    toolkit: Toolkit | None  # None: only the CPU kernels
    archs: tuple[Architecture, ...]
    jobs: int

    def __str__(self) -> str:
        cuda = "without CUDA"
        if self.toolkit:
            cuda = f"with {self.toolkit} for {', '.join(map(str, self.archs))}"
        return f"recgrela: {self.torch}; {cuda}; {self.jobs} parallel jobs"


def cuda_setting() -> bool | None:
    """Returns the value of RECGRELA_CUDA as a bool, or None if it is not set: torch and nvcc then decide.

    Raises:
        BuildError: It has another value.
    """
    text = os.environ.get("RECGRELA_CUDA", "")
    if text not in ("", "0", "1"):
        raise BuildError(
            f"RECGRELA_CUDA={text} is not 0 or 1",
            "1 builds the CUDA kernels, 0 only the CPU kernels; if it is unset, torch and nvcc decide",
        )
    return {"": None, "0": False, "1": True}[text]


def choose_toolkit(torch: Torch | None) -> Toolkit | None:
    """Returns a toolkit of the same major version as torch's CUDA; None if none is wanted or found.

    Raises:
        BuildError: CUDA_HOME is a toolkit of another major version.
    """
    setting = cuda_setting()
    if setting is False:
        return None
    toolkits = find_toolkits(torch.search_path if torch else ())
    if named_toolkit():
        if torch and torch.cuda_major not in (None, toolkits[0].major):
            raise no_toolkit(torch)
        return toolkits[0]
    major = torch.cuda_major if torch else EXPECTED_MAJOR
    if torch and torch.cuda is None and setting is None:
        # Toolkit packages may have been installed before it was known that torch has no CUDA.
        toolkits = [toolkit for toolkit in toolkits if not toolkit.from_packages]
    fitting = (t for t in toolkits if t.major >= OLDEST_MAJOR and major in (None, t.major))
    return next(fitting, None)


def no_toolkit(torch: Torch) -> BuildError:
    """Returns an error that says that no toolkit matches torch, and which toolkits were found."""
    release = f" of CUDA {torch.cuda_major}" if torch.cuda else ""
    cause = f"RECGRELA_CUDA=1 and {torch}" if cuda_setting() else str(torch)
    cause += f", but no nvcc{release} with cuda_runtime.h and libcudart_static.a was found"
    if others := find_toolkits(torch.search_path):
        cause += f", only {', '.join(map(str, others))}"
    remedies = [f"set CUDA_HOME to a toolkit{release}"]
    if name := named_toolkit():
        remedies.append(f"unset {name}")
    else:
        remedies.append(f"put nvcc{release} on PATH")
        if has_packages(torch.cuda_major):
            # The release must be that of torch's CUDA packages, which are in the same environment.
            release = torch.cuda or first_release(None)
            remedies.append(f"pip install '{requirement(release)}'")
    if not has_packages(torch.cuda_major):
        remedies.append(f"install a torch for CUDA {EXPECTED_MAJOR}, whose nvcc pip can install")
    return BuildError(cause, f"{', or '.join(remedies)}; {CPU_ONLY}")


def requirements() -> list[str]:
    """Returns the requirements beyond pyproject.toml: torch and nvcc, if they are wanted but missing.

    Raises:
        BuildError: The build would fail even if they were installed.
    """
    check_cxx()
    torch = find_torch()
    if torch and not torch.is_supported:
        torch = None
    needed = [] if torch else [TORCH_REQUIREMENT]
    if toolkit := choose_toolkit(torch):
        architectures.choose(toolkit)
    elif torch is None:
        # The torch to be installed is expected to have CUDA; a package index may offer other builds.
        if cuda_setting() is not False and has_packages(None):
            needed += PACKAGES_BESIDE_TORCH
    elif wants_cuda(torch):
        if not has_packages(torch.cuda_major):
            raise no_toolkit(torch)
        needed.append(requirement(first_release(torch.cuda_major)))
    return needed


def wants_cuda(torch: Torch) -> bool:
    """Reports whether the build must have CUDA."""
    setting = cuda_setting()
    return torch.cuda is not None if setting is None else setting


def make_plan() -> Plan:
    """Finds and checks torch, nvcc and the compiler.

    Raises:
        BuildError: Something is missing, too old or incompatible.
    """
    torch = find_torch()
    if torch is None:
        raise BuildError("no torch was found", f"pip install '{TORCH_REQUIREMENT}', or build with isolation")
    if not torch.is_supported:
        raise BuildError(f"{torch} is too old", f"pip install '{TORCH_REQUIREMENT}'")
    if find_spec("pybind11") is None:
        raise BuildError("no pybind11 was found", "pip install pybind11, or build with isolation")
    # If pip runs in an environment that is not active, ninja is next to the environment's python.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    if shutil.which("ninja") is None:
        raise BuildError("no ninja was found on PATH", "pip install ninja, or build with isolation")
    check_cxx()
    toolkit = choose_toolkit(torch)
    archs: list[Architecture] = []
    if toolkit:
        archs = architectures.choose(toolkit)
        check_nvcc(toolkit, archs)
    elif wants_cuda(torch):
        raise no_toolkit(torch)
    return Plan(torch, toolkit, tuple(archs), choose_jobs())
