"""Time and memory of a training step of the published size beside plain PyTorch.

The size is 4 blocks, D 64, 4 heads, L 200. A step makes the batch and runs forward, backward and Adam. The
peer, benchmarks/published.py, pads sequences, computes all positions in every block, holds dense scores and
uses a DataLoader. The cases:

  last, attend  the published model and objective; padding takes part in attention
  last, mask    the same without padding, which the peer still computes
  all, causal   every position of a window is a target; both take the same number of targets a step

python -m benchmarks.cpu.train_step [--data ml-1m.inter.gz --batch 256 --windows 32 --threads 2 --rounds 5]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import published
from benchmarks.timing import OURS, arguments, check_results, compare, record
from python_tests.cases.gated_rela import ATTENTION
from recgrela.data import Batch, DataConfig, Interactions, TrainBatches, load
from recgrela.models import RecGRELAConfig, build
from recgrela.settings.run import DEFAULT_MAX_TOKENS
from recgrela.settings.train import TrainConfig
from recgrela.training.losses import FullSoftmax
from recgrela.training.step import TrainStep

LENGTH = 200
CASES: dict[str, tuple[RecGRELAConfig, tuple[str, ...]]] = {
    "last, attend": (RecGRELAConfig(mode="bidirectional", padding="attend"), ("bidirectional",)),
    "last, mask": (RecGRELAConfig(mode="bidirectional", padding="mask"), ("bidirectional",)),
    "all, causal": (RecGRELAConfig(mode="causal"), ("causal_masked", "causal_chunked")),
}


def load_data(path: str) -> Interactions:
    """Reads a data set; "synthetic" has as many users, items and events as MovieLens-1M."""
    return load(DataConfig(path, synthetic_users=6040, synthetic_items=3416, synthetic_events=165))


def endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def our_batches(case: str, data: Interactions, size: int) -> Iterator[Batch]:
    objective = "last" if case.startswith("last") else "all"
    batches = TrainBatches(data, objective, LENGTH, size, 0)
    return itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())


def make(
    variant: str, case: str, data_path: str, size: int, targets: int, threads: int
) -> Callable[[], None]:
    """A function that takes one step, with `size` sequences for the peer and `targets` targets for ours."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = load_data(data_path)
    config, _ = CASES[case]
    if variant == OURS:
        model = build(config, data.n_items, LENGTH)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        objective = "last" if case.startswith("last") else "all"
        settings = TrainConfig(objective=objective, batch_size=targets)
        step = TrainStep(model, optimizer, FullSoftmax(), settings, DEFAULT_MAX_TOKENS["cpu"])
        batches = our_batches(case, data, targets)
        return lambda: step(next(batches), 1e-3)

    peer = published.Published(ATTENTION[variant], data.n_items, LENGTH)
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


def agree(case: str, form: str, data: Interactions, size: int) -> float:
    """The largest relative error of loss and gradients on one batch without dropout."""
    torch.manual_seed(0)
    config, _ = CASES[case]
    model = build(config, data.n_items, LENGTH).eval()
    peer = published.Published(ATTENTION[form], data.n_items, LENGTH).eval()
    peer.load_state_dict(model.state_dict())
    batch = next(our_batches(case, data, size))
    loss = model.loss_packed(batch.items, batch.cu_seqlens, batch.target, batch.max_seqlen, batch.objective)
    loss.backward()
    lengths = batch.cu_seqlens.diff()
    mask = torch.arange(LENGTH) < lengths[:, None]

    def padded(x: Tensor) -> Tensor:
        return torch.zeros(batch.size, LENGTH, dtype=torch.int64).masked_scatter(mask, x)

    if case.startswith("last"):
        theirs = peer.loss_last(padded(batch.items), lengths, batch.target)
    else:
        theirs = peer.loss_all(padded(batch.items), padded(batch.target))
    theirs.backward()
    names = [name for name, _ in model.named_parameters()]
    gradients = [
        {"gradient": torch.cat([m.get_parameter(name).grad.flatten() for name in names])}
        for m in (peer, model)
    ]
    return max(
        check_results(
            f"{case}, {form}", {"loss": theirs.detach()[None]}, {"loss": loss.detach()[None]}, 1e-5
        ),
        check_results(f"{case}, {form}", *gradients, 1e-3),
    )


def main() -> None:
    parser = arguments(__doc__, batch=256, windows=32, threads=2, rounds=5)
    parser.add_argument("--data", default="synthetic", help="a file or folder that --data.path takes")
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
        # With padding masked, the models differ: the peer is the published one.
        errors = [agree(case, form, data, min(targets, 2000)) for form in forms if case != "last, mask"]
        results.append(
            {"case": case, "targets": targets, "max_relative_error": max(errors, default=None)}
            | compare(
                f"{case}: {targets} targets a step",
                make,
                (OURS, *forms),
                (case, args.data, size, targets, args.threads),
                (case, "synthetic", 2, 4, args.threads),
                args.rounds,
                warm_up=1,
            )
        )
    record("train_step", vars(args) | {"data": Path(args.data).name}, results)


if __name__ == "__main__":
    main()
