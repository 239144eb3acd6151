"""Selects the GPU architectures that the kernels are compiled for."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from build_backend.errors import CPU_ONLY, BuildError
from build_backend.toolkit import Toolkit

# Code for 8.0 also runs on 8.6 and 8.9, and PTX for 9.0 on later GPUs. Few targets keep the build short.
DEFAULT = "8.0;9.0+PTX"
OLDEST = (8, 0)  # bfloat16 tensor cores, asynchronous copies
# Names of architectures that torch accepts in TORCH_CUDA_ARCH_LIST.
NAMES = {
    "Kepler+Tegra": "3.7",
    "Kepler": "3.5",
    "Maxwell+Tegra": "5.3",
    "Maxwell": "5.0",
    "Pascal": "6.0",
    "Volta+Tegra": "7.2",
    "Volta": "7.0",
    "Turing": "7.5",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0 8.6",
    "Ada": "8.9",
    "Hopper": "9.0",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0 12.0",
}
FORM = "numbers such as 8.0 or 9.0a, with +PTX after one to support later GPUs, separated by ; or spaces"


@dataclass(frozen=True)
class Architecture:
    """A compute capability, such as 9.0, 9.0a (for this GPU only) or 9.0+PTX (for later GPUs too)."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    @property
    def code(self) -> str:
        return f"{self.major}{self.minor}{self.suffix}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"

    @property
    def flags(self) -> list[str]:
        codes = [f"sm_{self.code}"] + ([f"compute_{self.code}"] if self.ptx else [])
        return [flag for code in codes for flag in ("-gencode", f"arch=compute_{self.code},code={code}")]


def parse(text: str) -> list[Architecture]:
    """Parses a TORCH_CUDA_ARCH_LIST.

    Architectures that are too old for the kernels are dropped as long as one remains, since the variable
    is often set for all packages of a machine.

    Raises:
        BuildError: The list is malformed, or no architecture remains.
    """
    numbers = text
    for name, capabilities in NAMES.items():
        numbers = re.sub(rf"\b{re.escape(name)}\b", capabilities, numbers)
    archs = []
    for item in re.split(r"[;,\s]+", numbers.strip(";, \n")):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
        if not match:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST={text} has the unknown entry {item!r}", f"write {FORM}; {CPU_ONLY}"
            )
        archs.append(Architecture(int(match[1]), int(match[2]), match[3], match[4] is not None))
    usable = [arch for arch in dict.fromkeys(archs) if (arch.major, arch.minor) >= OLDEST]
    if not usable:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST={text} has no architecture that the kernels support",
            f"add {OLDEST[0]}.{OLDEST[1]} or newer, or unset it for {DEFAULT}; {CPU_ONLY}",
        )
    return usable


def choose(toolkit: Toolkit) -> list[Architecture]:
    """Returns the architectures of TORCH_CUDA_ARCH_LIST, or the default.

    Raises:
        BuildError: nvcc does not support one of them.
    """
    text = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT
    archs = parse(text)
    done = subprocess.run([toolkit.nvcc, "--list-gpu-code"], capture_output=True, text=True)
    known = sorted(map(int, re.findall(r"sm_(\d+)", done.stdout)))
    if unknown := [arch for arch in archs if 10 * arch.major + arch.minor not in known]:
        choice = ", ".join(
            f"{code // 10}.{code % 10}" for code in known if code >= 10 * OLDEST[0] + OLDEST[1]
        )
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST={text}: {toolkit} does not support {', '.join(map(str, unknown))}",
            f"choose from {choice}, or use a newer nvcc (CUDA_HOME); {CPU_ONLY}",
        )
    return archs
