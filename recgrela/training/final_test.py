"""The final test of a run, with the weights chosen on the valid split."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from recgrela.evaluation.metrics import Ranking
from recgrela.runs import checkpoint
from recgrela.runs.curves import draw_curves
from recgrela.runs.folder import CheckpointName, RunFolder
from recgrela.runs.ranks import Ranks, write_ranks
from recgrela.runs.state import TrainState
from recgrela.runs.tables import show_rankings
from recgrela.training.session import Session


def run_final_test(
    session: Session,
    folder: RunFolder,
    which: CheckpointName,
    reason: str,
    console: Console,
    after_batch: Callable[[], None],
) -> dict[str, Ranking]:
    """Evaluate a checkpoint on both splits; write ranks, results and curves, and print the table.

    Args:
        session: the run's parts; its model gets the weights of the checkpoint.
        folder: the run folder.
        which: the checkpoint.
        reason: why training ended.
        console: the output.
        after_batch: called after each batch; may raise an exception to stop.

    Returns:
        The ranking of each split.
    """
    path = folder.checkpoint_path(which)
    state = TrainState.from_dict(checkpoint.load(path, session.model), path)
    rankings = {split: session.ranker(batches, after_batch) for split, batches in session.splits.items()}
    results = {
        "checkpoint": which,
        "epoch": state.epoch + (state.step > 0),
        "step": state.total_steps,
        "reason": reason,
        **{split: ranking.as_dict() for split, ranking in rankings.items()},
    }
    write_ranks(
        folder.ranks_path,
        {
            split: Ranks(batches.users, *rankings[split].ranks.numpy())
            for split, batches in session.splits.items()
        },
    )
    folder.metrics.append({"kind": "final", **results})
    folder.write_json(folder.results_path, results)
    draw_curves(folder.curves_path, folder.metrics.read(), console)
    show_rankings(console, rankings, f"{folder.path.name}, {path.name} ({state.describe()})")
    return rankings
