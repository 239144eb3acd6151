"""gated_rela, forward + backward, against eager PyTorch: time and peak memory.

python -m benchmarks.cpu.gated_rela [--batch 64 --length 200 --dim 64 --heads 4 --threads 2 --rounds 30]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.timing import gate, medians, peak_memory, record
from recgrela.ops import gated_rela, rotary_table

OURS = "recgrela"


def case(
    mode: str, variant: str, sizes: tuple[int, int, int, int], threads: int
) -> Callable[[], list[Tensor]]:
    """A function that runs one forward and backward and returns y and the gradients."""
    batch, length, dim, heads = sizes
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    qk = torch.randn(batch, length, 2 * dim, requires_grad=True)  # one projection, as in the model
    v, g = (torch.randn(batch, length, dim, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(dim, 4, requires_grad=True), torch.randn(dim, requires_grad=True)
    rotary, dy = rotary_table(length, dim), torch.randn(batch, length, dim)
    inputs = [qk, v, g, weight, bias]

    def run() -> list[Tensor]:
        if variant == OURS:
            y = gated_rela(
                qk,
                None,
                v,
                g,
                num_heads=heads,
                causal=mode == "causal",
                rotary=rotary,
                conv_weight=weight,
                conv_bias=bias,
            )
        else:
            q, k = qk.chunk(2, dim=-1)
            form = {f.__name__: f for f in eager.FORMS[mode]}[variant]
            y = eager.gated_rela(form, q, k, v, g, rotary, weight, bias, heads)
        return [y.detach(), *torch.autograd.grad(y, inputs, dy)]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (
        ("batch", 64),
        ("length", 200),
        ("dim", 64),
        ("heads", 4),
        ("threads", 2),
        ("rounds", 30),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    sizes = (args.batch, args.length, args.dim, args.heads)
    results = []
    for mode, forms in eager.FORMS.items():
        names = [OURS, *(f.__name__ for f in forms)]
        runs = {name: case(mode, name, sizes, args.threads) for name in names}
        outputs = {name: run() for name, run in runs.items()}
        errors = [
            gate(f"{mode}, {name}", e, o, 1e-3)
            for name in names[1:]
            for e, o in zip(outputs[name], outputs[OURS], strict=True)
        ]
        del outputs
        seconds = medians(runs, args.rounds)
        small = (2, 8, args.dim, args.heads)
        memory = {
            name: peak_memory(case, (mode, name, small, args.threads), (mode, name, sizes, args.threads))
            for name in names
        }
        best = min(names[1:], key=seconds.__getitem__)
        results.append(
            {
                "mode": mode,
                "max_relative_error": max(errors),
                "milliseconds": {name: round(1e3 * s, 3) for name, s in seconds.items()},
                "peak_megabytes": {name: round(m / 1e6, 1) for name, m in memory.items()},
                "times_faster_than_the_faster_eager": round(seconds[best] / seconds[OURS], 2),
                "share_of_its_peak_memory": round(memory[OURS] / memory[best], 3),
            }
        )
        print(f"{mode}: largest relative error against eager {max(errors):.1e}")
        for name in names:
            print(f"  {name:15s} {1e3 * seconds[name]:8.2f} ms  {memory[name] / 1e6:8.1f} MB peak")
        print(
            f"  {seconds[best] / seconds[OURS]:.1f} times faster than {best}, "
            f"with {memory[OURS] / memory[best]:.2f} of its memory"
        )
    record("gated_rela", vars(args), results)


if __name__ == "__main__":
    main()
