"""Training throughput and memory by sequence length, at a fixed number of tokens a step.

The cost is linear if both stay the same. The causal model has the published size, every position is a target,
and items are random. The lengths take turns.

python -m benchmarks.cpu.length [--tokens 65536 --threads 2 --rounds 5 --device cpu]
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.timing import arguments, medians, peak_memory, record
from recgrela.data import Batch
from recgrela.models import RecGRELAConfig, build
from recgrela.settings.train import TrainConfig
from recgrela.training.losses import FullSoftmax
from recgrela.training.step import TrainStep

N_ITEMS = 3417
LENGTHS = (200, 1000, 4096, 16_384, 65_536)


def make(length: int, tokens: int, threads: int, device: str) -> Callable[[], None]:
    """A function that takes one step on sequences of `length` items, `tokens` in all, in one pass."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(RecGRELAConfig(), N_ITEMS, length).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    step = TrainStep(model, optimizer, FullSoftmax(), TrainConfig(), tokens)
    items = torch.randint(1, N_ITEMS, (tokens + 1,), device=device)
    cu_seqlens = torch.arange(0, tokens + length, length).clamp(max=tokens)
    users = torch.arange(len(cu_seqlens) - 1)
    place = cu_seqlens.to(device)
    batch = Batch("all", items[:-1], place, length, items[1:], users, cu_seqlens.numpy())

    def run() -> None:
        step(batch, 1e-3)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def gpu_peak(length: int, tokens: int, threads: int, device: str) -> int:
    """Peak bytes that a step allocates."""
    run = make(length, tokens, threads, device)
    run()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def main() -> None:
    parser = arguments(__doc__, tokens=65_536, threads=2, rounds=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lengths = [length for length in LENGTHS if length <= args.tokens]
    shape = (args.tokens, args.threads, args.device)
    seconds = medians({str(n): make(n, *shape) for n in lengths}, args.rounds, warm_up=1)
    results = []
    for n in lengths:
        if args.device == "cpu":
            bytes_ = peak_memory(make, (200, 400, args.threads, "cpu"), (n, *shape))
        else:
            bytes_ = gpu_peak(n, *shape)
        rate = args.tokens / seconds[str(n)]
        results.append(
            {
                "length": n,
                "milliseconds": round(1e3 * seconds[str(n)], 1),
                "tokens_per_second": round(rate),
                "peak_megabytes": round(bytes_ / 1e6, 1),
            }
        )
        print(
            f"length {n:6d}  {1e3 * seconds[str(n)]:9.1f} ms  {rate:9,.0f} tokens/s  {bytes_ / 1e6:8.1f} MB"
        )
    record("length", vars(args), results)


if __name__ == "__main__":
    main()
