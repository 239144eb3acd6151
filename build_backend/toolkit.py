"""Finds nvcc, or names the packages that provide it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from build_backend.errors import CPU_ONLY, BuildError

# The parts of a toolkit that a build needs, as pip installs them.
TOOLKIT_PACKAGE = "cuda-toolkit[nvcc,crt,nvvm,cccl,cudart]"
# CUDA major version of the torch that pip installs by default, and the oldest one that has nvcc as a package.
EXPECTED_MAJOR = 13
# The same parts, to be installed together with torch. torch pins the exact releases of the last two, which
# are not known before pip has chosen torch; if they were pinned here, pip would choose another torch.
PACKAGES_BESIDE_TORCH = (
    f"nvidia-cuda-nvcc=={EXPECTED_MAJOR}.0.*",
    f"nvidia-cuda-crt=={EXPECTED_MAJOR}.0.*",
    f"nvidia-nvvm=={EXPECTED_MAJOR}.0.*",
    f"nvidia-cuda-runtime>={EXPECTED_MAJOR},<{EXPECTED_MAJOR + 1}",
    f"nvidia-cuda-cccl>={EXPECTED_MAJOR},<{EXPECTED_MAJOR + 1}",
)
OLDEST_MAJOR = 12  # the oldest that supports all default architectures
DEFAULT_HOMES = ("/usr/local/cuda", "/opt/cuda")
# Layouts of NVIDIA's toolkit and pip packages, conda and Debian.
INCLUDE_FOLDERS = ("include", "targets/x86_64-linux/include", "targets/sbsa-linux/include")
LIBRARY_FOLDERS = (
    "lib64",
    "lib",
    "targets/x86_64-linux/lib",
    "targets/sbsa-linux/lib",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
)


@dataclass(frozen=True)
class Toolkit:
    """The parts of a CUDA toolkit that the build uses: nvcc, the runtime's headers and its static library."""

    home: Path
    release: str  # such as "13.0"
    from_packages: bool = False  # installed by pip

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(map(int, self.release.split(".")))

    @property
    def major(self) -> int:
        return self.version[0]

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"

    @property
    def include_folder(self) -> Path:
        return next(self.home / f for f in INCLUDE_FOLDERS if (self.home / f / "cuda_runtime.h").exists())

    @property
    def library_folders(self) -> list[str]:
        return [str(self.home / folder) for folder in LIBRARY_FOLDERS if (self.home / folder).is_dir()]

    def __str__(self) -> str:
        return f"nvcc {self.release} in {self.home}"


def toolkit_at(home: Path, from_packages: bool = False) -> Toolkit | None:
    """Returns the toolkit in a folder; None if it is incomplete, such as torch's CUDA packages."""
    nvcc = home / "bin" / "nvcc"
    if (
        not os.access(nvcc, os.X_OK)
        or not any((home / folder / "cuda_runtime.h").exists() for folder in INCLUDE_FOLDERS)
        or not any((home / folder / "libcudart_static.a").exists() for folder in LIBRARY_FOLDERS)
    ):
        return None
    try:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    except OSError:  # built for another architecture
        return None
    release = re.search(r"release ([\d.]+)", done.stdout)
    return Toolkit(home, release[1], from_packages) if release else None


def named_toolkit() -> str | None:
    """Returns the name of the environment variable that selects a toolkit, if one is set."""
    return next((name for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)), None)


def find_toolkits(search_path: tuple[str, ...] = ()) -> list[Toolkit]:
    """Returns all toolkits, in order of preference.

    Returns only CUDA_HOME (or CUDA_PATH) if it is set. Otherwise returns the toolkit of the nvcc on PATH,
    those of pip packages on sys.path and `search_path`, and those in the default folders.

    Raises:
        BuildError: CUDA_HOME or CUDA_PATH is not a complete toolkit.
    """
    if name := named_toolkit():
        home = os.environ[name]
        if toolkit := toolkit_at(Path(home)):
            return [toolkit]
        raise BuildError(
            f"{name}={home} lacks bin/nvcc, cuda_runtime.h or libcudart_static.a",
            f"set {name} to a complete CUDA toolkit, or unset it; {CPU_ONLY}",
        )
    found = []
    if nvcc := shutil.which("nvcc"):
        # On Debian, nvcc is a link that leaves the toolkit's folder; elsewhere it may be a link into one.
        found += [toolkit_at(path.parent.parent) for path in (Path(nvcc), Path(nvcc).resolve())]
    for folder in [*sys.path, *search_path]:
        found += [toolkit_at(home, True) for home in sorted(Path(folder or ".").glob("nvidia/cu[0-9]*"))]
    found += [toolkit_at(Path(place).resolve()) for place in DEFAULT_HOMES]
    beside = [home for place in DEFAULT_HOMES for home in Path(place).parent.glob("cuda-[0-9]*")]
    newest_first = sorted(
        filter(None, map(toolkit_at, beside)), key=lambda toolkit: toolkit.version, reverse=True
    )
    found += newest_first
    unique: dict[Path, Toolkit] = {}
    for toolkit in found:
        if toolkit:
            unique.setdefault(toolkit.home.resolve(), toolkit)
    return list(unique.values())


def has_packages(cuda_major: int | None) -> bool:
    """Reports whether pip can install an nvcc of this major version, or of any version if it is None."""
    return sys.platform == "linux" and (cuda_major is None or cuda_major >= EXPECTED_MAJOR)


def requirement(release: str) -> str:
    """Returns the requirement that installs nvcc of a release, such as "13.0"."""
    return f"{TOOLKIT_PACKAGE}=={release}.*"


def first_release(cuda_major: int | None) -> str:
    """Returns the first release of a major version: most drivers support it, and run its PTX."""
    return f"{cuda_major or EXPECTED_MAJOR}.0"
