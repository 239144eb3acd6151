"""Time on the host of every op's forward and backward on few rows, beside torch.nn.Linear.

python -m benchmarks.cpu.host_time [--rounds 400]

On so few rows the time is that of Python, autograd and the dispatcher. On a GPU it is what a call costs the
host; with CUDA graphs it is paid once. The operands are those of the small calls in python_tests/ops.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import recgrela.ops
from benchmarks.timing import arguments, medians, record
from recgrela.ops import OPS

LINEAR = "torch.nn.Linear"
ROWS, WIDTH = 8, 64


def forward_and_backward(call: Callable[[], object], leaves: list[Tensor]) -> Callable[[], None]:
    """A function that calls an op and computes the gradients of its operands."""

    def outputs() -> list[Tensor]:
        out = call()
        return [y for y in (out if isinstance(out, tuple) else (out,)) if y.requires_grad]

    upstream = [torch.ones_like(y) for y in outputs()]
    return lambda: torch.autograd.backward(outputs(), upstream, inputs=leaves)


def variants(name: str) -> dict[str, Callable[[], object]]:
    """The forward, and the forward and backward, of an op or of torch.nn.Linear."""
    if name == LINEAR:
        layer = torch.nn.Linear(WIDTH, WIDTH)
        x = torch.randn(ROWS, WIDTH, requires_grad=True)
        leaves = [x, *layer.parameters()]
        call: Callable[[], object] = partial(layer, x)
    else:
        operands, others = importlib.import_module(f"python_tests.ops.test_{name}").example()
        single = torch.complex64
        operands = {
            n: x.detach().to(single if x.is_complex() else torch.float32).requires_grad_()
            for n, x in operands.items()
        }
        others = {
            n: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in others.items()
        }
        leaves = list(operands.values())
        call = partial(getattr(recgrela.ops, name), **operands, **others)
    both = forward_and_backward(call, leaves)

    def run() -> None:
        for x in leaves:
            x.grad = None
        both()

    return {f"{name} forward": call, name: run}


def main() -> None:
    args = arguments(__doc__, rounds=400).parse_args()
    torch.set_num_threads(1)
    names = [LINEAR, *OPS]
    seconds = medians({k: f for name in names for k, f in variants(name).items()}, args.rounds, warm_up=20)
    table = Table("op", "forward, us", "forward and backward, us", f"times {LINEAR}")
    results = []
    for name in names:
        ratio = seconds[name] / seconds[LINEAR]
        forward, both = (1e6 * seconds[key] for key in (f"{name} forward", name))
        table.add_row(name, f"{forward:.0f}", f"{both:.0f}", f"{ratio:.1f}")
        results.append(
            {"op": name, "forward_us": round(forward, 1), "us": round(both, 1), "ratio": round(ratio, 2)}
        )
    Console().print(table)
    record("host_time", vars(args), results)


if __name__ == "__main__":
    main()
