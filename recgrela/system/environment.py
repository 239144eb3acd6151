"""Facts about the installation: versions, the build, and whether its kernels run on this machine."""

from __future__ import annotations

import platform
from typing import Any

import torch

import recgrela
from recgrela.system.errors import one_line


def environment_facts() -> dict[str, Any]:
    """Versions, build facts, and whether the kernels run on the CPU and on each GPU, as plain values.

    `built` is None if the compiled library cannot be loaded; `library_error` then has the reason.
    """
    found: dict[str, Any] = {
        "recgrela": recgrela.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
    }
    try:
        from recgrela.ops._library import _C
    except ImportError as error:
        unusable = _usability("the compiled library cannot be loaded")
        return found | {
            "built": None,
            "library_error": one_line(error),
            "cpu": unusable,
            "cuda": unusable | {"gpus": []},
        }
    return found | {
        "built": {
            "torch": _C.torch_version,
            "compiler": _C.compiler,
            "cuda": _C.cuda_version,
            "cuda_architectures": _C.cuda_architectures.split() if _C.cuda_architectures else [],
        },
        "library_error": None,
        "cpu": _usability(kernel_fault("cpu")) | {"isa": _C.cpu_isa(), "threads": torch.get_num_threads()},
        "cuda": _cuda_facts(),
    }


def kernel_fault(device: str) -> str | None:
    """Compares the kernels of `gated_rela` and its gradient with the reference on a device.

    Returns:
        The error or the size of the difference, None if the results agree.
    """
    from recgrela.ops import gated_rela, gated_rela_reference, rotary_table

    generator = torch.Generator().manual_seed(0)
    try:
        x = torch.randn(24, 32, generator=generator, dtype=torch.float32, device="cpu").to(device)
        cu_seqlens = torch.tensor([0, 17, 24], device=device)
        options: dict[str, Any] = {"num_heads": 2, "causal": True}
        options["rotary"] = rotary_table(17, 32, device=device)
        results = []
        for op in (gated_rela, gated_rela_reference):
            leaf = x.clone().requires_grad_()
            y: Any = op(leaf, leaf, leaf, leaf, cu_seqlens, **options)
            (d_x,) = torch.autograd.grad(y.square().sum(), leaf)
            results.append(torch.cat([y.detach(), d_x]).cpu())
    except RuntimeError as error:
        return one_line(error)
    result, expected = results
    if not torch.allclose(result, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        return f"wrong results: the reference differs by {(result - expected).abs().max().item():.3g}"
    return None


def _cuda_facts() -> dict[str, Any]:
    from recgrela.system import device  # needs the compiled library

    driver = device.driver_cuda()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [_gpu_facts(index) for index in range(count)]
    why_not = None
    if not any(gpu["usable"] for gpu in gpus):
        why_not = device.build_obstacle() or "; ".join(gpu["why_not"] for gpu in gpus)
    return _usability(why_not) | {"driver_cuda": driver and f"{driver[0]}.{driver[1]}", "gpus": gpus}


def _gpu_facts(index: int) -> dict[str, Any]:
    from recgrela.system import device

    why_not = device.gpu_obstacle(index)
    try:
        properties = torch.cuda.get_device_properties(index)
    except RuntimeError as error:
        return {"name": None} | _usability(why_not or one_line(error))
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "code": device.code_for(properties.major, properties.minor),
    } | _usability(why_not or kernel_fault(f"cuda:{index}"))


def _usability(why_not: str | None) -> dict[str, Any]:
    return {"usable": why_not is None, "why_not": why_not}
