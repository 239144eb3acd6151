"""Builds the extension recgrela._C: C++ always, CUDA where csrc/kernels has sources and nvcc can be found.

The library uses libtorch's stable ABI only, so it is not tied to the torch that built it (any torch >= 2.10).
RECGRELA_CUDA=0 builds without CUDA on purpose; TORCH_CUDA_ARCH_LIST and MAX_JOBS are honoured.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "recgrela/__init__.py").read_text(), re.M)[1]
TARGET_TORCH = "0x020a000000000000"  # 2.10
# Code for 8.0 also runs on 8.6 and 8.9, and PTX on what comes after 9.0: few targets keep the build short.
CUDA_ARCHITECTURES = "8.0;9.0+PTX"
# Enough of a toolkit.
CUDA_PACKAGES = [
    f"nvidia-{name}==13.0.*" for name in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-cccl", "cuda-runtime")
]
LIBRARY_DIRS = ("lib64", "lib", "targets/x86_64-linux/lib", "lib/x86_64-linux-gnu")


def find(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def find_cuda_home() -> Path | None:
    """The toolkit's folder: CUDA_HOME, that of nvcc on PATH, of the pip packages, or the usual place."""
    candidates = [os.environ.get("CUDA_HOME")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parent.parent))  # a wrapper script may stand elsewhere
    candidates += [os.path.join(folder, "nvidia", "cu13") for folder in sys.path]
    candidates.append("/usr/local/cuda")
    for home in map(Path, filter(None, candidates)):
        # A CUDA build of torch brings some of the pip packages: runtime and headers without nvcc.
        if (
            (home / "bin" / "nvcc").exists()
            and (home / "include" / "cuda_runtime.h").exists()
            and any((home / lib / "libcudart_static.a").exists() for lib in LIBRARY_DIRS)
        ):
            return home
    return None


def cuda_release(home: Path) -> str:
    output = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True)
    return re.search(r"release ([\d.]+)", output.stdout)[1]


def extension() -> cpp_extension.CppExtension:
    sources = ["csrc/module.cpp", *find("csrc/ops/*.cpp"), *find("csrc/cpu/*.cpp")]
    cuda_ops = find("csrc/ops/*_cuda.cpp")
    sources = [source for source in sources if source not in cuda_ops]
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
                "recgrela: this torch has CUDA, but no nvcc with cuda_runtime.h and libcudart_static.a was "
                "found: put nvcc on PATH, set CUDA_HOME or "
                f"pip install {' '.join(CUDA_PACKAGES)}; RECGRELA_CUDA=0 builds the CPU kernels alone"
            )
        if home is not None:
            # With a CPU-only torch cpp_extension sets no CUDA_HOME; the compiler needs none of torch's CUDA.
            cpp_extension.CUDA_HOME = str(home)
            sources += [*cuda_ops, *kernels]
            include_dirs.append(str(home / "include"))
            link = {
                "library_dirs": [str(home / lib) for lib in LIBRARY_DIRS],
                "libraries": ["cudart_static", "dl", "rt", "pthread"],
            }
            archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
            # The first is for torch's headers.
            macros |= {"USE_CUDA": "1", "RECGRELA_CUDA_ARCHITECTURES": archs.replace(";", " ")}
            macros["RECGRELA_CUDA_VERSION"] = cuda_release(home)
            flags["nvcc"] = ["-O3", "-std=c++17", "-Xptxas", "-v"]  # benchmarks/ptxas.py reads what -v says
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
