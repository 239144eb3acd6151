"""Compiles CUDA sources with the nvcc that a build would use, and shortens the names of kernels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
from build_backend.toolkit import find_toolkits  # noqa: E402


@dataclass(frozen=True)
class Compiled:
    """A compiled source.

    Attributes:
        cubin: machine code of one architecture.
        report: what ptxas printed.
    """

    cubin: Path
    report: str


def find_nvcc() -> str | None:
    """Returns the nvcc that a build would use."""
    toolkits = find_toolkits()
    return str(toolkits[0].nvcc) if toolkits else None


def jobs() -> int:
    """Number of compilers that run at a time."""
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def compile_cubins(
    nvcc: str,
    sources: Iterable[Path],
    architectures: Sequence[str],
    folder: Path,
    flags: Sequence[str] = (),
    root: Path = ROOT,
) -> list[Compiled]:
    """Compiles each source for each architecture, such as "90", several at a time.

    Raises:
        SystemExit: with the compiler's message, if a source does not compile.
    """

    def job(source: Path, architecture: str) -> Compiled:
        target = folder / f"{source.parent.name}_{source.stem}.{architecture}.cubin"
        code = f"arch=compute_{architecture},code=sm_{architecture}"
        command = [nvcc, "-O3", "-std=c++17", "-Xptxas", "-v", f"-I{root / 'csrc'}", "-gencode", code, *flags]
        command += ["-cubin", str(source), "-o", str(target)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
        return Compiled(target, done.stdout)

    with ThreadPoolExecutor(jobs()) as pool:
        running = [pool.submit(job, source, arch) for source in sources for arch in architectures]
        return [done.result() for done in running]


def shorten(name: str) -> str:
    """Returns a demangled name without namespaces, result and arguments."""
    name = re.sub(r"\(anonymous namespace\)::|recgrela::cuda::|^void ", "", name)
    depth = 0
    for i, letter in enumerate(name):
        if letter == "(" and depth == 0:
            return name[:i]
        depth += (letter == "<") - (letter == ">")
    return name


def demangle(names: Sequence[str]) -> list[str]:
    """Returns short names for mangled ones, or the same names if there is no demangler."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return list(names)
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return [shorten(name) for name in done.stdout.splitlines()]
