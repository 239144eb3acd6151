"""linear_scan and selective_scan, forward + backward, against plain PyTorch: time and peak memory.

python -m benchmarks.cpu.scans [--batch 32 --length 200 --channels 128 --states 32 --threads 1 2 --rounds 10]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import gate, medians, peak_memory, record
from recgrela.ops import linear_scan, selective_scan

OURS = "recgrela"
Sizes = tuple[int, int, int, int]  # batch, length, channels, states


def linear_by_row(x: Tensor, a: Tensor) -> Tensor:
    """[B, L, C]; a [C] or [B, L, C]."""
    steps = a.expand_as(x).unbind(1)
    h, out = torch.zeros_like(x[:, 0]), []
    for row, step in zip(x.unbind(1), steps, strict=True):
        h = step * h + row
        out.append(h)
    return torch.stack(out, 1)


def selective_by_row(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """[B, L, I]: each row's decay and input are made when its turn comes."""
    delta = F.softplus(delta + bias)
    driven = delta * u
    h, out = u.new_zeros(len(u), *A.shape), []
    for d, x, b, c in zip(delta.unbind(1), driven.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = (d[..., None] * A).exp() * h + x[..., None] * b[:, None]
        out.append((h @ c[..., None]).squeeze(-1))
    return (torch.stack(out, 1) + D * u) * F.silu(z)


def selective_wide(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """[B, L, I]: the decays and inputs of all rows, [B, L, I, N], are made first."""
    delta = F.softplus(delta + bias)
    decay = (delta[..., None] * A).exp()
    driven = (delta * u)[..., None] * B[:, :, None]
    h, out = u.new_zeros(len(u), *A.shape), []
    for e, x, c in zip(decay.unbind(1), driven.unbind(1), C.unbind(1), strict=True):
        h = e * h + x
        out.append((h @ c[..., None]).squeeze(-1))
    return (torch.stack(out, 1) + D * u) * F.silu(z)


FORMS: dict[str, list[Callable[..., Tensor]]] = {
    "linear_scan, real, a of each step": [linear_by_row],
    "linear_scan, complex, constant a": [linear_by_row],
    "selective_scan": [selective_by_row, selective_wide],
}


def operands(name: str, sizes: Sizes) -> list[Tensor]:
    batch, length, channels, states = sizes
    rows = (batch, length, channels)
    if name == "linear_scan, real, a of each step":
        return [torch.randn(rows), torch.rand(rows)]
    if name == "linear_scan, complex, constant a":
        turn = torch.polar(torch.full((channels,), 0.98), torch.rand(channels))
        return [torch.randn(*rows, dtype=torch.complex64), turn]
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)  # Mamba's own start
    B, C = (torch.randn(batch, length, states) for _ in range(2))
    u, delta, z = (torch.randn(rows) for _ in range(3))
    return [u, delta - 4, A, B, C, torch.randn(channels), z, torch.randn(channels)]


def case(name: str, variant: str, sizes: Sizes, threads: int) -> Callable[[], list[Tensor]]:
    """A function that runs one forward and backward and returns the output and the gradients."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    inputs = [x.requires_grad_() for x in operands(name, sizes)]
    ours = selective_scan if name == "selective_scan" else linear_scan
    op = {f.__name__: f for f in FORMS[name]}.get(variant, ours)
    dy = torch.randn_like(inputs[0])

    def run() -> list[Tensor]:
        y = op(*inputs)
        results = (y.detach(), *torch.autograd.grad(y, inputs, dy))
        return [torch.view_as_real(x) if x.is_complex() else x for x in results]

    return run


def measure_memory(name: str, sizes: Sizes, threads: int) -> dict[str, int]:
    small = (2, 8, *sizes[2:])
    return {
        variant: peak_memory(case, (name, variant, small, threads), (name, variant, sizes, threads))
        for variant in (OURS, *(f.__name__ for f in FORMS[name]))
    }


def compare(name: str, sizes: Sizes, threads: int, rounds: int, memory: dict[str, int]) -> dict[str, Any]:
    """The gate, then the time of all forms of one op."""
    variants = list(memory)
    runs = {variant: case(name, variant, sizes, threads) for variant in variants}
    outputs = {variant: run() for variant, run in runs.items()}
    errors = [
        gate(f"{name}, {variant}", e, o, 1e-3)
        for variant in variants[1:]
        for e, o in zip(outputs[variant], outputs[OURS], strict=True)
    ]
    del outputs
    seconds = medians(runs, rounds)
    best = min(variants[1:], key=seconds.__getitem__)
    print(f"{name}, {threads} threads: largest relative error against eager {max(errors):.1e}")
    for variant in variants:
        print(f"  {variant:16s} {1e3 * seconds[variant]:8.2f} ms  {memory[variant] / 1e6:8.1f} MB peak")
    print(
        f"  {seconds[best] / seconds[OURS]:.1f} times faster than {best}, "
        f"with {memory[OURS] / memory[best]:.2f} of its memory"
    )
    return {
        "case": name,
        "threads": threads,
        "max_relative_error": max(errors),
        "milliseconds": {variant: round(1e3 * s, 3) for variant, s in seconds.items()},
        "peak_megabytes": {variant: round(m / 1e6, 1) for variant, m in memory.items()},
        "times_faster_than_the_faster_eager": round(seconds[best] / seconds[OURS], 2),
        "share_of_its_peak_memory": round(memory[OURS] / memory[best], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    defaults = {"batch": 32, "length": 200, "channels": 128, "states": 32, "rounds": 10}
    for option, default in defaults.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    sizes = (args.batch, args.length, args.channels, args.states)
    results = []
    for name in FORMS:
        memory = measure_memory(name, sizes, max(args.threads))
        results += [compare(name, sizes, threads, args.rounds, memory) for threads in args.threads]
    record("scans", vars(args), results)


if __name__ == "__main__":
    main()
