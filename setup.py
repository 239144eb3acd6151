"""Builds the extension recgrela._C: always C++, and CUDA if torch has it or nvcc is found (build_backend).

Respects RECGRELA_CUDA, RECGRELA_SANITIZE, RECGRELA_NVCC_FLAGS, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CUDA_HOME and
CXX. The library uses only libtorch's stable ABI, so it works with every torch >= 2.10, not only the one that
built it.
"""

import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from setuptools import setup

from build_backend.compilers import SANITIZE, sanitize
from build_backend.objects import remove_outdated
from build_backend.plan import Plan, make_plan
from build_backend.target import import_torch

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "recgrela/__init__.py").read_text(), re.M)[1]
INCLUDE = ROOT / "build" / "include"
TARGET_TORCH = "0x020a000000000000"  # 2.10
# __FILE__ is relative to this folder, so that the library does not contain the path of the build machine.
RELATIVE = f"-ffile-prefix-map={ROOT}/="
COMPILING = {"build", "build_ext", "bdist", "bdist_wheel", "editable_wheel", "install", "develop"}


def find(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def sources(plan: Plan) -> list[str]:
    files = [
        "csrc/module.cpp",
        *find("csrc/cpu/*.cpp"),
        *find("csrc/ops/*.cpp"),
        *find("csrc/kernels/**/*.cu"),
    ]
    return [file for file in files if plan.toolkit or not file.endswith((".cu", "_cuda.cpp"))]


def stable_path(name: str, folder: str | Path | None) -> str:
    """Links a package's folder at a path that is the same in all builds of this tree, and returns the path.

    An isolated build has its packages in a new temporary folder each time. A constant path keeps the commands
    constant, so ninja recompiles only the sources whose headers changed. Without a folder nothing is linked.
    """
    link = INCLUDE / name
    if link.is_dir() and not link.is_symlink():  # a copy of this tree that followed links
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    if folder:
        link.symlink_to(folder)
    return str(link)


def write_facts(plan: Plan) -> None:
    """Writes the facts that csrc/module.cpp exports, if they have changed: otherwise ninja can skip it."""
    facts = {"VERSION": VERSION, "TORCH_VERSION": plan.torch.version}
    if plan.toolkit:
        facts |= {
            "CUDA_VERSION": plan.toolkit.release,
            "CUDA_ARCHITECTURES": " ".join(map(str, plan.archs)),
        }
    text = "".join(f'#define RECGRELA_{name} "{value}"\n' for name, value in facts.items())
    file = INCLUDE / "recgrela_build.h"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def commands(plan: Plan) -> dict[str, object]:
    """Returns the arguments of setup(): the extension, and the command that builds it."""
    import_torch(plan.torch)
    import pybind11
    from torch.utils import cpp_extension

    os.environ["MAX_JOBS"] = str(plan.jobs)
    INCLUDE.mkdir(parents=True, exist_ok=True)
    write_facts(plan)
    link: dict[str, list[str]] = {}
    flags = {"cxx": ["-O3", "-std=c++17", "-Wall", "-Wextra", "-fvisibility=hidden", "-g0", RELATIVE]}
    if sanitize():
        # -g1: only the line numbers that the sanitizers report.
        flags["cxx"] += [*SANITIZE, "-O1", "-g1", "-fno-omit-frame-pointer"]
        link["extra_link_args"] = SANITIZE
    include_dirs = [str(ROOT / "csrc"), str(INCLUDE), stable_path("pybind11", pybind11.get_include())]
    include_dirs.append(stable_path("cuda", plan.toolkit and plan.toolkit.include_folder))
    if plan.toolkit:
        toolkit = replace(plan.toolkit, home=Path(stable_path("toolkit", plan.toolkit.home)))
        # cpp_extension sets no CUDA_HOME if torch has no CUDA. The kernels do not use torch's CUDA code.
        cpp_extension.CUDA_HOME = str(toolkit.home)
        link["library_dirs"] = toolkit.library_folders
        link["libraries"] = ["cudart_static", "dl", "rt", "pthread"]
        # tools/ptxas.py reads the output of -v. --threads compiles the architectures of a file in parallel.
        flags["nvcc"] = ["-O3", "-std=c++17", "-Xptxas", "-v", "--threads", str(min(4, len(plan.archs)))]
        flags["nvcc"] += ["-Xcompiler", RELATIVE]
        flags["nvcc"] += [flag for arch in plan.archs for flag in arch.flags]
        flags["nvcc"].append(f"-DRECGRELA_NVCC={plan.toolkit.release}")  # a new release recompiles every file
        flags["nvcc"] += shlex.split(os.environ.get("RECGRELA_NVCC_FLAGS", ""))  # such as macros of tuning.h
    extension = cpp_extension.CppExtension(
        "recgrela._C",
        sources(plan),
        include_dirs=include_dirs,
        define_macros=[("TORCH_TARGET_VERSION", TARGET_TORCH)],
        extra_compile_args=flags,
        **link,
    )
    torch_include = plan.torch.folder / "include"
    torch_link = stable_path("torch", torch_include)
    extension.include_dirs = [path.replace(str(torch_include), torch_link) for path in extension.include_dirs]

    class BuildExtension(cpp_extension.BuildExtension):
        """Keeps objects in one folder for all kinds of builds, to recompile only changed sources.

        --build-temp names another one, for a build with other flags.
        """

        def finalize_options(self) -> None:
            objects = self.build_temp
            super().finalize_options()
            # The virtual environment's include folder has no headers used here, and its path differs in each
            # isolated build.
            own = os.path.join(sys.exec_prefix, "include")
            self.include_dirs = [folder for folder in self.include_dirs if folder != own]
            self.build_temp = objects or os.path.join(
                "build", f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
            )

        def build_extensions(self) -> None:
            release = plan.toolkit.release if plan.toolkit else ""
            packages = f"torch {plan.torch.version}, pybind11 {pybind11.__version__}, CUDA {release}\n"
            remove_outdated(ROOT / self.build_temp, extension.sources, packages)
            super().build_extensions()

    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


def main() -> None:
    if not COMPILING & set(sys.argv):  # an sdist or metadata, which do not need torch
        setup()
        return
    plan = make_plan()
    print(plan, flush=True)
    setup(**commands(plan))


main()
