"""Makes a wheel with CUDA kernels on a machine with or without a GPU, and checks that others can use it.

    python -m build_backend.wheel                 # dist/recgrela-...-manylinux_..._x86_64.whl

It needs `pip install -e '.[dev]'`; nvcc comes from the package index where there is none. CUDA_HOME,
MAX_JOBS and TORCH_CUDA_ARCH_LIST are honoured. The oldest glibc that the wheel runs with follows from the
build machine's own: build in an old distribution, such as a manylinux image, for old ones.
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
MAX_BYTES_PER_ARCHITECTURE = 10 << 20  # of the library


def run(*command: str | Path, **environ: str) -> str:
    """Standard output of a command; ends the program with all of it where the exit code is not 0."""
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
    """The wheel as setuptools makes it, tagged for machines like this one."""
    options = [] if isolated else ["--no-isolation"]
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, *options, ".", RECGRELA_CUDA="1")
    return only(folder, "*.whl")


def repair(wheel: Path, out: Path) -> Path:
    """The wheel tagged for every Linux that has the glibc it needs. libtorch stays outside: it is torch's."""
    with tempfile.TemporaryDirectory() as folder:
        excluded = [f"--exclude={library}" for library in ("libtorch*.so*", "libc10*.so*")]
        run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", folder, wheel)
        repaired = only(Path(folder), "*.whl")
        if "manylinux" not in repaired.name:
            said = run(sys.executable, "-m", "auditwheel", "show", wheel)
            raise SystemExit(f"{repaired.name} is not for every Linux: {said}")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(repaired, out / repaired.name))  # perhaps to another file system


def check(wheel: Path) -> dict[str, Any]:
    """Unpacks the wheel, audits its library and runs its CPU kernels with the torch of this environment."""
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
        raise SystemExit(f"the library has {size / 2**20:.1f} MiB for {len(archs)} architectures: too much")
    return facts | {"library_bytes": size}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m build_backend.wheel",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder for the wheel")
    parser.add_argument("--no-isolation", action="store_true", help="build with this environment's packages")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        wheel = repair(build(Path(folder), not options.no_isolation), options.out.resolve())
    facts = check(wheel)
    built, archs = facts["built"], ", ".join(facts["built"]["cuda_architectures"])
    print(wheel)
    print(
        f"{wheel.stat().st_size / 2**20:.1f} MiB, library {facts['library_bytes'] / 2**20:.1f} MiB, "
        f"CUDA {built['cuda']} for {archs}; built with torch {built['torch']}, runs with {facts['torch']}; "
        "libtorch only by its stable ABI"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
