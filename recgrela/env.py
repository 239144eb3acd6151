"""`python -m recgrela.env`: what was built, and whether its kernels run on this machine."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import recgrela
from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import Option

NOT_USABLE = 1  # the exit code; 2 is a mistake in the command


def facts() -> dict[str, Any]:
    """Versions, build facts, and for the CPU and each GPU whether the kernels run, as plain values.

    `built` is None where the compiled library does not load, with the reason in `library_error`.
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
        why = " ".join(str(error).split())
        unusable = {"usable": False, "why_not": "the compiled library does not load"}
        return found | {"built": None, "library_error": why, "cpu": unusable, "cuda": unusable | {"gpus": []}}
    return found | {
        "built": {
            "torch": _C.torch_version,
            "compiler": _C.compiler,
            "cuda": _C.cuda_version,
            "cuda_architectures": _C.cuda_architectures.split() if _C.cuda_architectures else [],
        },
        "library_error": None,
        "cpu": _usable(_try("cpu")) | {"isa": _C.cpu_isa(), "threads": torch.get_num_threads()},
        "cuda": _cuda(),
    }


def _cuda() -> dict[str, Any]:
    from recgrela.system import gpu

    driver = gpu.driver_cuda()
    gpus: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        why_not = gpu.gpu_obstacle(index)
        try:
            properties = torch.cuda.get_device_properties(index)
        except RuntimeError as error:
            gpus.append({"name": None} | _usable(why_not or " ".join(str(error).split())))
            continue
        why_not = why_not or _try(f"cuda:{index}")
        gpus.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "code": gpu.code_for(properties.major, properties.minor),
            }
            | _usable(why_not)
        )
    why_not = None
    if not any(found["usable"] for found in gpus):
        why_not = gpu.build_obstacle() or "; ".join(found["why_not"] for found in gpus)
    return _usable(why_not) | {"driver_cuda": driver and f"{driver[0]}.{driver[1]}", "gpus": gpus}


def _usable(why_not: str | None) -> dict[str, Any]:
    return {"usable": why_not is None, "why_not": why_not}


def _try(device: str) -> str | None:
    """Runs the operator and its gradient on a device; what went wrong, or None."""
    from recgrela.ops import gated_rela, gated_rela_reference, rotary_table

    generator = torch.Generator().manual_seed(0)
    try:
        x = torch.randn(24, 32, generator=generator).to(device)
        table = rotary_table(17, 32, device=device)
        options: dict[str, Any] = {"num_heads": 2, "causal": True, "rotary": table}
        results = []
        for op in (gated_rela, gated_rela_reference):
            leaf = x.clone().requires_grad_()
            cu_seqlens = torch.tensor([0, 17, 24], device=device)
            y: Any = op(leaf, leaf, leaf, leaf, cu_seqlens, **options)
            (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
            results.append(torch.cat([y.detach(), gradient]).cpu())
    except RuntimeError as error:
        return " ".join(str(error).split())
    ours, expected = results
    if not torch.allclose(ours, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        return f"wrong results: {(ours - expected).abs().max().item():.3g} off the reference"
    return None


def command(argv: Sequence[str]) -> int:
    """Print the facts.

    Exit code 0 if the kernels run on the CPU and on every GPU that PyTorch sees (or on what --require names),
    1 if they do not.
    """
    parser = Parser("env", "Show how recgrela was built and whether its kernels run on this machine.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add(
        [
            Option(
                "require",
                None,
                "Exit with 0 if the kernels run on this device, else with 1; by default on the CPU and on "
                "every GPU that PyTorch detects.",
                choices=("cpu", "cuda"),
            )
        ]
    )
    options = parser.read(argv)
    found = facts()
    if options["json"]:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    if options["require"]:
        usable = found[options["require"]]["usable"]
    else:
        usable = found["cpu"]["usable"] and all(gpu["usable"] for gpu in found["cuda"]["gpus"])
    return 0 if usable else NOT_USABLE


def _print(found: dict[str, Any]) -> None:
    table = Table(show_header=False)

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{name}.{key}", item)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                add(f"{name}.{index}", item)
        elif value is None or value == []:
            return
        elif isinstance(value, bool):
            table.add_row(name, "yes" if value else "no")
        else:
            table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))

    for name, value in found.items():
        add(name, value)
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
