"""LinRec's linear attention against softmax attention as sequences grow: a training step's time and memory.

Both models have the same sizes (D 128, 8 heads, 2 blocks) and differ in their attention alone; sequences are
full, the last position is the target. LinRec's own paper gives a third of the time and memory at 200 items.

python benchmarks/attention_length.py [--tokens 16384 --threads 2 --rounds 5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from timing import medians, peak_memory, record

from recgrela.models import LinRecConfig, SASRecConfig, build

N_ITEMS = 3417
LENGTHS = (200, 512, 1024, 2048, 4096)


def config_of(name: str) -> Any:
    linear = LinRecConfig(padding="mask", dropout=0.0)
    if name == "LinRec":
        return linear
    sizes = {k: v for k, v in asdict(linear).items() if k not in ("name", "padding")}
    return SASRecConfig(**sizes, attention_dropout=0.0)


def make(name: str, length: int, tokens: int, threads: int) -> Callable[[], None]:
    """What makes the gradients of one batch of sequences of `length` items, about `tokens` in all."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(config_of(name), N_ITEMS, length)
    batch = max(1, tokens // length)
    items, target = torch.randint(1, N_ITEMS, (batch * length,)), torch.randint(1, N_ITEMS, (batch,))
    cu_seqlens = torch.arange(batch + 1) * length

    def run() -> None:
        model.zero_grad()
        model.loss_packed(items, cu_seqlens, target, length).backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("tokens", 16_384), ("threads", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    shape = (args.tokens, args.threads)
    results = []
    for length in LENGTHS:
        names = ("LinRec", "SASRec")
        seconds = medians({n: make(n, length, *shape) for n in names}, args.rounds, warm_up=1)
        peak = {n: peak_memory(make, (n, 64, 1024, args.threads), (n, length, *shape)) for n in names}
        ratios = {
            "time": seconds["LinRec"] / seconds["SASRec"],
            "memory": peak["LinRec"] / peak["SASRec"],
        }
        results.append(
            {
                "length": length,
                **{f"{n} milliseconds": round(1e3 * seconds[n], 1) for n in names},
                **{f"{n} peak megabytes": round(peak[n] / 1e6, 1) for n in names},
                **{f"{what} ratio": round(ratio, 3) for what, ratio in ratios.items()},
            }
        )
        print(
            f"length {length:5d}  "
            + "  ".join(f"{n} {1e3 * seconds[n]:8.1f} ms {peak[n] / 1e6:7.1f} MB" for n in names)
            + f"  ratios {ratios['time']:.2f} {ratios['memory']:.2f}"
        )
    record("attention_length", vars(args), results)


if __name__ == "__main__":
    main()
