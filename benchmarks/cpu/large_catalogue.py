"""`linear_cross_entropy`, forward and backward, for a catalogue of a million items: time and memory.

The memory is the highest that the whole process held, with PyTorch, the table and its gradient. There is no
dense peer: its scores alone would be rows x items x 4 bytes. The tests compare the op with it where it fits.

python -m benchmarks.cpu.large_catalogue [--rows 8192 --items 1000000 --dim 64 --threads 2]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from benchmarks.timing import record
from recgrela.ops import linear_cross_entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("rows", 8192), ("items", 1_000_000), ("dim", 64), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
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
    print(f"loss {loss.item():.4f}, {seconds:.1f} s, {peak:,.0f} MiB at the highest", end="")
    print(f"; all scores would be {scores:.1f} GiB")
    result = {"seconds": round(seconds, 1), "process_peak_mebibytes": round(peak, 1)}
    record("large_catalogue", vars(args), [result])


if __name__ == "__main__":
    main()
