"""Time and memory of `linear_cross_entropy`, forward and backward, for a catalogue of a million items.

The memory is the peak of the whole process, including PyTorch, the table and its gradient. The dense form
is not measured, because its scores alone would take rows x items x 4 bytes. Tests compare the op with it at
small sizes.

python -m benchmarks.cpu.large_catalogue [--rows 8192 --items 1000000 --dim 64 --threads 2]
"""

from __future__ import annotations

import resource
import time

import torch

from benchmarks.timing import arguments, record
from recgrela.ops import linear_cross_entropy


def main() -> None:
    args = arguments(__doc__, rows=8192, items=1_000_000, dim=64, threads=2).parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    hidden = torch.randn(args.rows, args.dim).mul_(0.1).requires_grad_()
    weight = torch.empty(args.items, args.dim).normal_().requires_grad_()
    target = torch.randint(args.items, (args.rows,))
    began = time.perf_counter()
    loss = linear_cross_entropy(hidden, weight, target)
    loss.backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = args.rows * args.items * 4 / 2**30
    print(f"loss {loss.item():.4f}, {seconds:.1f} s, {peak:,.0f} MiB peak", end="")
    print(f"; all scores would be {scores:.1f} GiB")
    result = {"seconds": round(seconds, 1), "process_peak_mebibytes": round(peak, 1)}
    record("large_catalogue", vars(args), [result])


if __name__ == "__main__":
    main()
