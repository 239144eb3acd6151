"""A training step of the published setting (4 blocks, D 64, 4 heads, L 200) against plain PyTorch.

A step is: make the batch, forward, backward, Adam. The peer is benchmarks/published.py: padded, all positions
in every block, dense scores, DataLoader. Three cases:

  last, attend  the published model and objective: padding slots take part in attention
  last, mask    the same without them, which the padded peer cannot leave out
  all, causal   every position of a window is a target; as many targets a step for both

python -m benchmarks.cpu.train_step [--data ml-1m.inter.gz --batch 256 --windows 32 --threads 2 --rounds 5]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import eager, published
from benchmarks.timing import gate, medians, peak_memory, record
from recgrela.data import Batch, DataConfig, Interactions, TrainBatches, load
from recgrela.models import RecGRELAConfig, build
from recgrela.settings.train import TrainConfig
from recgrela.system.runtime import DEFAULT_MAX_TOKENS
from recgrela.training.losses import FullSoftmax
from recgrela.training.step import TrainStep

LENGTH = 200
OURS = "recgrela"
CASES: dict[str, tuple[RecGRELAConfig, list[Callable[..., Tensor]]]] = {
    "last, attend": (RecGRELAConfig(mode="bidirectional", padding="attend"), eager.FORMS["bidirectional"]),
    "last, mask": (RecGRELAConfig(mode="bidirectional", padding="mask"), eager.FORMS["bidirectional"]),
    "all, causal": (RecGRELAConfig(mode="causal"), eager.FORMS["causal"]),
}


def load_data(path: str) -> Interactions:
    """The file's events, or (synthetic) as many users, items and events as MovieLens-1M has."""
    return load(DataConfig(path, synthetic_users=6040, synthetic_items=3416, synthetic_events=165))


def endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def our_batches(case: str, data: Interactions, size: int) -> Iterator[Batch]:
    objective = "last" if case.startswith("last") else "all"
    batches = TrainBatches(data, objective, LENGTH, size, 0)
    return itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())


def make(
    case: str, variant: str, data_path: str, size: int, targets: int, threads: int
) -> Callable[[], None]:
    """What takes one step. `size`: sequences in the peer's batch; `targets`: in ours."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = load_data(data_path)
    config, forms = CASES[case]
    if variant == OURS:
        model = build(config, data.n_items, LENGTH)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        objective = "last" if case.startswith("last") else "all"
        settings = TrainConfig(objective=objective, batch_size=targets)
        step = TrainStep(model, optimizer, FullSoftmax(), settings, DEFAULT_MAX_TOKENS["cpu"])
        batches = our_batches(case, data, targets)
        return lambda: step(next(batches), 1e-3)

    form = {f.__name__: f for f in forms}[variant]
    peer = published.Published(form, data.n_items, LENGTH)
    adam = torch.optim.Adam(peer.parameters(), fused=True)
    last = case.startswith("last")
    dataset = published.Prefixes(data, LENGTH) if last else published.Windows(data, LENGTH)
    loader = endless(DataLoader(dataset, size, shuffle=True))

    def run() -> None:
        adam.zero_grad()
        batch = next(loader)
        loss = peer.loss_last(*batch) if last else peer.loss_all(*batch)
        loss.backward()
        adam.step()

    return run


def agree(case: str, form: Callable[..., Tensor], data: Interactions, size: int) -> float:
    """The largest relative error of loss and gradients, on one batch without dropout; none is too large."""
    torch.manual_seed(0)
    config, _ = CASES[case]
    model = build(config, data.n_items, LENGTH).eval()
    peer = published.Published(form, data.n_items, LENGTH).eval()
    peer.load_state_dict(model.state_dict())
    batch = next(our_batches(case, data, size))
    loss = model.loss_packed(batch.items, batch.cu_seqlens, batch.target, batch.max_seqlen, batch.objective)
    loss.backward()
    lengths = batch.cu_seqlens.diff()
    place = torch.arange(LENGTH) < lengths[:, None]

    def padded(x: Tensor) -> Tensor:
        return torch.zeros(batch.size, LENGTH, dtype=torch.int64).masked_scatter(place, x)

    if case.startswith("last"):
        theirs = peer.loss_last(padded(batch.items), lengths, batch.target)
    else:
        theirs = peer.loss_all(padded(batch.items), padded(batch.target))
    theirs.backward()
    names = [name for name, _ in model.named_parameters()]
    gradients = [torch.cat([m.get_parameter(name).grad.flatten() for name in names]) for m in (peer, model)]
    return max(
        gate(f"{case}, {form.__name__}, loss", theirs, loss, 1e-5),
        gate(f"{case}, {form.__name__}, gradient", *gradients, 1e-3),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="synthetic")
    for name, default in (("batch", 256), ("windows", 32), ("threads", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load_data(args.data)
    windows = published.Windows(data, LENGTH)
    targets_per_window = sum(end - begin for begin, end in windows.windows) / len(windows)
    results = []
    for case, (_, forms) in CASES.items():
        last = case.startswith("last")
        size = args.batch if last else args.windows
        targets = size if last else round(size * targets_per_window)
        # With padding masked the two are not the same function; the peer's is the published one.
        errors = [agree(case, form, data, min(targets, 2000)) for form in forms if case != "last, mask"]
        names = [OURS, *(form.__name__ for form in forms)]
        arguments = {name: (case, name, args.data, size, targets, args.threads) for name in names}
        seconds = medians({name: make(*a) for name, a in arguments.items()}, args.rounds, warm_up=1)
        small = ("synthetic", 2, 4, args.threads)
        memory = {name: peak_memory(make, (case, name, *small), a) for name, a in arguments.items()}
        best = min(names[1:], key=seconds.__getitem__)
        faster, share = seconds[best] / seconds[OURS], memory[OURS] / memory[best]
        print(f"{case}: {targets} targets a step" + (f", largest error {max(errors):.1e}" if errors else ""))
        for name in names:
            rate = targets / seconds[name]
            print(f"  {name:15s} {1e3 * seconds[name]:9.1f} ms", end="")
            print(f"  {memory[name] / 1e6:8.1f} MB  {rate:8,.0f} targets/s")
        print(f"  {faster:.2f} times faster than {best}, with {share:.3f} of its memory")
        results.append(
            {
                "case": case,
                "targets": targets,
                "max_relative_error": max(errors, default=None),
                "milliseconds": {name: round(1e3 * s, 1) for name, s in seconds.items()},
                "peak_megabytes": {name: round(m / 1e6, 1) for name, m in memory.items()},
                "times_faster_than_the_faster_eager": round(faster, 2),
                "share_of_its_peak_memory": round(share, 4),
            }
        )
    record("train_step", vars(args) | {"data": Path(args.data).name}, results)


if __name__ == "__main__":
    main()
