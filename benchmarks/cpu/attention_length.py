"""Time and memory of a training step with LinRec's linear attention and with softmax attention, by length.

Both models have the same sizes (D 128, 8 heads, 2 blocks) and differ only in their attention. Sequences are
full, and the last position is the target. Softmax attention is measured twice: fused by PyTorch, which stores
no matrix of weights, and written out, as in the models that LinRec's paper compares with.

python -m benchmarks.cpu.attention_length [--tokens 16384 --threads 2 --rounds 5]
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.timing import arguments, medians, peak_memory, record
from recgrela.models import LinRecConfig, SASRecConfig, build

N_ITEMS = 3417
LENGTHS = (200, 1024, 4096)
FORMS = ("linear", "fused softmax", "written-out softmax")


def config_of(form: str) -> Any:
    linear = LinRecConfig(padding="mask", dropout=0.0)
    if form == "linear":
        return linear
    sizes = {k: v for k, v in asdict(linear).items() if k not in ("name", "padding")}
    return SASRecConfig(**sizes, attention_dropout=0.0)


def make(form: str, length: int, tokens: int, threads: int) -> Callable[[], None]:
    """A function that computes the gradients of a batch of about `tokens` items in sequences of `length`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(config_of(form), N_ITEMS, length)
    batch = max(1, tokens // length)
    items, target = torch.randint(1, N_ITEMS, (batch * length,)), torch.randint(1, N_ITEMS, (batch,))
    cu_seqlens = torch.arange(batch + 1) * length

    def run() -> None:
        model.zero_grad()
        written_out = form == "written-out softmax"
        with sdpa_kernel(SDPBackend.MATH) if written_out else nullcontext():
            model.loss_packed(items, cu_seqlens, target, length).backward()

    return run


def main() -> None:
    args = arguments(__doc__, tokens=16_384, threads=2, rounds=5).parse_args()
    shape = (args.tokens, args.threads)
    results = []
    for length in LENGTHS:
        seconds = medians({f: make(f, length, *shape) for f in FORMS}, args.rounds, warm_up=1)
        peak = {f: peak_memory(make, (f, 64, 1024, args.threads), (f, length, *shape)) for f in FORMS}
        print(f"length {length}")
        for form in FORMS:
            time_ratio, memory_ratio = seconds["linear"] / seconds[form], peak["linear"] / peak[form]
            results.append(
                {
                    "length": length,
                    "attention": form,
                    "milliseconds": round(1e3 * seconds[form], 1),
                    "peak_megabytes": round(peak[form] / 1e6, 1),
                    "linear's share of the time": round(time_ratio, 3),
                    "linear's share of the memory": round(memory_ratio, 3),
                }
            )
            print(
                f"  {form:20s} {1e3 * seconds[form]:9.1f} ms  {peak[form] / 1e6:8.1f} MB  "
                f"linear takes {time_ratio:.2f} of the time, {memory_ratio:.2f} of the memory"
            )
    record("attention_length", vars(args), results)


if __name__ == "__main__":
    main()
