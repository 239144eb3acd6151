"""Builds the library of each variant, and the program that times them."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.variants.knobs import Variant
from tools.nvcc import ROOT, find_nvcc, jobs
from tools.tuning import KERNELS

HERE = Path(__file__).parent
SIMT = [ROOT / "csrc" / "tests" / "simt" / f"{name}.cpp" for name in ("simt", "collectives", "context")]
INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]


Command = list[str | Path]


@dataclass(frozen=True)
class Compiler:
    """How sources become objects, libraries and programs.

    Attributes:
        command: compiler with the options of every call.
        unit: options for a .cu file.
        shared: options for a library.
        folder: where results are.
        more: sources that each library needs too.
    """

    command: tuple[str, ...]
    unit: tuple[str, ...]
    shared: tuple[str, ...]
    folder: Path
    more: tuple[Path, ...] = ()


def gpu_compiler(architecture: str) -> Compiler:
    """nvcc for an architecture, such as "90"; without nvcc, only what has been built can be used.

    A library may lack the kernels of an element type that is not run.
    """
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = (find_nvcc() or "nvcc", "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", code)
    return Compiler(
        command, (), ("-shared", "-Xlinker=-z,lazy"), ROOT / "build" / "variants" / f"sm_{architecture}"
    )


def simt_compiler() -> Compiler:
    """The C++ compiler, for kernels on the CPU."""
    hidden = ("-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wno-unknown-pragmas")
    command = (
        *shlex.split(os.environ.get("CXX", "c++")),
        "-std=c++17",
        "-O1",
        "-DRECGRELA_SIMT_HOST",
        *hidden,
    )
    shared = ("-shared", "-Wl,-z,lazy")
    return Compiler(command, ("-x", "c++"), shared, ROOT / "build" / "variants" / "simt", tuple(SIMT))


def units(op: str, dtype: str | None) -> list[Path]:
    """Sources of an operator, without those of other element types."""
    others = [] if dtype is None else [x for x in ("float32", "float16", "bfloat16") if x != dtype]
    sources = sorted((KERNELS / op).glob("**/*.cu"))
    return [s for s in sources if not any(s.stem == x or s.stem.endswith(f"_{x}") for x in others)]


def digest(sources: Iterable[Path], options: Sequence[str]) -> str:
    """Tells whether a result is that of these sources, of all headers, and of these options."""
    state = hashlib.sha256("\n".join(options).encode())
    headers = [*ROOT.glob("csrc/**/*.cuh"), *ROOT.glob("csrc/**/*.h"), *HERE.glob("*.h")]
    for path in [*sources, *sorted(headers)]:
        state.update(path.read_bytes())
    return state.hexdigest()


def run(command: Command) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(map(str, command))}\n{done.stdout[-4000:]}")


class Builder:
    """Builds results that are out of date, several files at a time.

    Args:
        compiler: the compiler.
        dtype: element type whose kernels are built; None: all.
    """

    def __init__(self, compiler: Compiler, dtype: str | None = None) -> None:
        self.compiler, self.dtype = compiler, dtype

    def library(self, variant: Variant) -> Path:
        name = f"{variant.op}-{variant.name}{f'-{self.dtype}' if self.dtype else ''}.so"
        return self.compiler.folder / name.replace("=", "")

    @property
    def program(self) -> Path:
        return self.compiler.folder / "runner"

    def build(self, variants: Sequence[Variant]) -> None:
        """Builds the program and the library of each variant.

        Raises:
            SystemExit: with the compiler's message, if something does not compile.
        """
        self.compiler.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(jobs()) as pool:
            waiting = [self._program(pool), *(self._library(pool, variant) for variant in variants)]
            links = [link for link in waiting if link]
            for objects, command, mark, stamp in links:
                for one in objects:
                    one.result()
                run(command)
                mark.write_text(stamp)

    def _program(self, pool: ThreadPoolExecutor) -> _Link | None:
        source = HERE / "runner.cpp"
        command: Command = [*self.compiler.command, *INCLUDES, source, "-ldl", "-o", self.program]
        return self._link(pool, [source], [], command, self.program)

    def _library(self, pool: ThreadPoolExecutor, variant: Variant) -> _Link | None:
        target = self.library(variant)
        op = f"-DRECGRELA_OP={variant.op}"
        sources = [*units(variant.op, self.dtype), HERE / "library.cpp", *self.compiler.more]
        compiles: list[Command] = []
        objects: list[Path] = []
        for source in sources:
            of_variant = source not in self.compiler.more
            folder = target.with_suffix("") if of_variant else self.compiler.folder
            objects.append(folder / f"{source.parent.name}_{source.stem}.o")
            unit = self.compiler.unit if source.suffix == ".cu" else ()
            options = [*variant.defines, op] if of_variant else []
            one: Command = [
                *self.compiler.command,
                *options,
                *INCLUDES,
                *unit,
                "-c",
                source,
                "-o",
                objects[-1],
            ]
            compiles.append(one)
        command: Command = [*self.compiler.command, *self.compiler.shared, *objects, "-o", target]
        return self._link(pool, sources, compiles, command, target)

    def _link(
        self,
        pool: ThreadPoolExecutor,
        sources: Sequence[Path],
        compiles: Sequence[Command],
        command: Command,
        target: Path,
    ) -> _Link | None:
        """Begins to compile a result that is out of date."""
        options = [str(x).replace(str(ROOT), "") for one in (*compiles, command) for x in one[1:]]
        stamp, mark = digest(sources, options), target.with_name(target.name + ".stamp")
        if target.exists() and mark.exists() and mark.read_text() == stamp:
            return None
        mark.unlink(missing_ok=True)
        for one in compiles:
            Path(one[-1]).parent.mkdir(exist_ok=True)
        return [pool.submit(run, one) for one in compiles], command, mark, stamp


_Link = tuple[list["Future[None]"], Command, Path, str]
