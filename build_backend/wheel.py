"""Builds a wheel with CUDA kernels, on a machine with or without a GPU, and checks that it runs elsewhere.

    python -m build_backend.wheel                 # dist/recgrela-...-manylinux_..._x86_64.whl

Needs `pip install -e '.[dev]'`; nvcc is installed from the package index if it is missing. Respects
CUDA_HOME, MAX_JOBS and TORCH_CUDA_ARCH_LIST. The wheel does not support systems whose glibc is much older
than the build machine's: for old systems, build it in an old distribution, such as a manylinux image.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES_PER_ARCHITECTURE = 20 << 20  # limit on the size of the library, with about 500 kernels for each


def run(*command: str | Path, **environ: str) -> str:
    """Runs a command and returns its output; exits with the output if the command fails."""
    words = list(map(str, command))
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{shlex.join(words)}: exit code {done.returncode}")
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def build(folder: Path, isolated: bool) -> Path:
    """Builds the wheel, tagged for machines like this one."""
    options = [] if isolated else ["--no-isolation"]
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, *options, ".", RECGRELA_CUDA="1")
    return only(folder, "*.whl")


def repair(wheel: Path, out: Path) -> Path:
    """Tags the wheel for every Linux with the glibc it needs, without symbols and torch's libraries."""
    with tempfile.TemporaryDirectory() as folder:
        excluded = [f"--exclude={library}" for library in ("libtorch*.so*", "libc10*.so*")]
        run(sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, "--wheel-dir", folder, wheel)
        repaired = only(Path(folder), "*.whl")
        if "manylinux" not in repaired.name:
            report = run(sys.executable, "-m", "auditwheel", "show", wheel)
            raise SystemExit(f"{repaired.name} is not tagged manylinux: {report}")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(repaired, out / repaired.name))  # works across file systems


def check(wheel: Path) -> dict[str, Any]:
    """Unpacks the wheel, audits its library and runs its CPU kernels with this environment's torch.

    Returns:
        The output of `python -m recgrela.env --json`, with the size of the library.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        library = only(folder, "recgrela/_C*.so")
        run(Path(sys.executable).with_name("torch-abi-audit"), "--check", "torch", library)
        size = library.stat().st_size
        command = "import sys; from recgrela.env import main; sys.exit(main(['--json', '--require', 'cpu']))"
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {name!r}); {command}"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"the wheel does not run: {done.stdout}{done.stderr}")
        facts: dict[str, Any] = json.loads(done.stdout)
    archs = facts["built"]["cuda_architectures"]
    if not archs:
        raise SystemExit("the wheel has no CUDA kernels")
    if size > MAX_BYTES_PER_ARCHITECTURE * len(archs):
        raise SystemExit(
            f"the library has {size / 2**20:.1f} MiB for {len(archs)} architectures, above the limit"
        )
    return facts | {"library_bytes": size}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m build_backend.wheel",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheel")
    parser.add_argument(
        "--no-isolation", action="store_true", help="build with the packages of this environment"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        wheel = repair(build(Path(folder), not options.no_isolation), options.out.resolve())
    facts = check(wheel)
    built, archs = facts["built"], ", ".join(facts["built"]["cuda_architectures"])
    print(wheel)
    print(
        f"{wheel.stat().st_size / 2**20:.1f} MiB, library {facts['library_bytes'] / 2**20:.1f} MiB, "
        f"CUDA {built['cuda']} for {archs}; built with torch {built['torch']}, runs with {facts['torch']}; "
        "uses only the stable ABI of libtorch"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
