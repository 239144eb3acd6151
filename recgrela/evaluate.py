"""`python -m recgrela.evaluate RUN`: repeat a run's table from its checkpoint and its data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from rich.console import Console

from recgrela import cli
from recgrela.data import EvalBatches, Interactions
from recgrela.files import given_path
from recgrela.metrics import Ranking, RankingSums
from recgrela.models import SequenceModel
from recgrela.report import say, show_rankings
from recgrela.runtime import max_tokens_of, pick_device
from recgrela.saved import SavedRun, load_data, load_run

Split = Literal["valid", "test"]


@torch.no_grad()
def rank_all(
    model: SequenceModel,
    batches: EvalBatches,
    device: torch.device,
    max_tokens: int,
    after_batch: Callable[[], None] | None = None,
) -> Ranking:
    """Rank every user of a split, with and without the items seen before.

    In float32 also after training in bfloat16, whose 8 bits would make ties of near scores.

    Args:
        model: in any mode; its mode is restored.
        batches: the split.
        device: where model and batches are.
        max_tokens: most item slots in one forward pass.
        after_batch: called after each batch; may raise to stop.

    Raises:
        RunError: the model gives NaN.
    """
    was_training = model.training
    model.eval()
    try:
        sums = RankingSums(device)
        for batch in batches:
            scores = torch.cat(
                [
                    model.score_packed(part.items, part.cu_seqlens, part.max_seqlen)
                    for part in batch.parts(max_tokens, model.counted_len, model.dense)
                ]
            )
            sums.add(scores, batch.target, batches.seen(batch))
            if after_batch is not None:
                after_batch()
        return sums.result()
    finally:
        model.train(was_training)


def evaluate(
    run: SavedRun, data: Interactions, splits: Sequence[Split] = ("valid", "test"), batch_size: int = 256
) -> dict[str, Ranking]:
    """Rank the splits with a saved run's model.

    Returns:
        A ranking by split.
    """
    on_device = data.to(run.device)
    rankings: dict[str, Ranking] = {}
    for split in splits:
        batches = EvalBatches(on_device, split, run.config.data.history_len, batch_size, run.device)
        rankings[split] = rank_all(run.model, batches, run.device, max_tokens_of(run.config, run.device))
    return rankings


def command(argv: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    parser = cli.make_parser("evaluate", "Repeat a run's table, with seen items ranked and removed.")
    parser.add_argument("run", help="Run folder.")
    parser.add_argument("--split", type=Literal["both", "valid", "test"], default="both", help="Which split.")
    parser.add_argument(
        "--checkpoint",
        type=Literal["auto", "best", "last"],
        default="auto",
        help="Which weights; auto takes those of the run's final table.",
    )
    parser.add_argument("--data.path", type=str | None, default=None, help="Where the data is now.")
    parser.add_argument("--batch_size", type=int | None, default=None, help="Users ranked at a time.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument("--threads", type=int | None, default=None, help="CPU threads.")
    types_of = {
        "split": Literal["both", "valid", "test"],
        "checkpoint": Literal["auto", "best", "last"],
        "batch_size": int,
        "threads": int,
    }
    options = cli.parse(parser, argv, types_of)
    cli.check_counts(options, "batch_size", "threads")
    if options.threads:
        torch.set_num_threads(options.threads)
    which = None if options.checkpoint == "auto" else options.checkpoint
    run = load_run(given_path(options.run, "RUN"), which, pick_device(options.device))
    data = load_data(run, options.data.path)
    splits: tuple[Split, ...] = ("valid", "test") if options.split == "both" else (options.split,)
    rankings = evaluate(run, data, splits, options.batch_size or run.config.train.eval_batch_size)
    console = Console()
    show_rankings(console, rankings, f"{run.folder.path.name}, {run.describe_checkpoint()}")
    say(console, f"data {data.description['source']}, sha256 {data.sha256[:16]}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
