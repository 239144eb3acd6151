"""Builds the extension recgrela._C: C++ always, CUDA where csrc/kernels has sources and nvcc can be found.

The library uses libtorch's stable ABI only, so it is not tied to the torch that built it (any torch >= 2.10).
RECGRELA_CUDA=0 builds without CUDA on purpose; TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "recgrela/__init__.py").read_text(), re.M)[1]
TARGET_TORCH = "0x020a000000000000"  # 2.10


def find(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def find_cuda_home() -> Path | None:
    """The toolkit's folder, with nvcc and headers: CUDA_HOME, that of nvcc on PATH, or the usual place."""
    candidates = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        candidates.insert(1, str(Path(nvcc).resolve().parent.parent))  # a wrapper script may stand elsewhere
    for home in map(Path, filter(None, candidates)):
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime.h").exists():
            return home
    return None


def cuda_release(home: Path) -> str:
    output = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True)
    return re.search(r"release ([\d.]+)", output.stdout)[1]


def extension() -> cpp_extension.CppExtension:
    sources = ["csrc/module.cpp", *find("csrc/ops/*.cpp"), *find("csrc/cpu/*.cpp")]
    kernels = find("csrc/kernels/*.cu")
    include_dirs = [str(ROOT / "csrc")]
    macros = {
        "TORCH_TARGET_VERSION": TARGET_TORCH,
        "RECGRELA_VERSION": VERSION,
        "RECGRELA_TORCH_VERSION": torch.__version__,
    }
    flags = {"cxx": ["-O3", "-std=c++17", "-Wall", "-Wextra", "-fvisibility=hidden", "-g0"]}
    link: dict[str, list[str]] = {}
    if kernels and os.environ.get("RECGRELA_CUDA") != "0":
        home = find_cuda_home()
        if home is None and torch.version.cuda:
            raise SystemExit(
                "recgrela: this torch has CUDA but no nvcc was found: put nvcc on PATH or set CUDA_HOME, "
                "or set RECGRELA_CUDA=0 to build the CPU kernels alone"
            )
        if home is not None:
            # With a CPU-only torch cpp_extension sets no CUDA_HOME; the compiler needs none of torch's CUDA.
            cpp_extension.CUDA_HOME = str(home)
            sources += kernels
            include_dirs.append(str(home / "include"))
            link = {
                "library_dirs": [str(home / "lib64"), str(home / "lib")],
                "libraries": ["cudart_static", "dl", "rt", "pthread"],
            }
            archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;8.6;8.9;9.0+PTX")
            macros |= {"USE_CUDA": "1", "RECGRELA_CUDA_ARCHITECTURES": archs.replace(";", " ")}
            macros["RECGRELA_CUDA_VERSION"] = cuda_release(home)
            flags["nvcc"] = ["-O3", "-std=c++17"]
    return cpp_extension.CppExtension(
        "recgrela._C",
        sources,
        include_dirs=include_dirs,
        define_macros=list(macros.items()),
        extra_compile_args=flags,
        py_limited_api=False,
        **link,
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension})
