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
    path = folder.find_checkpoint(which)
    state = TrainState.from_dict(checkpoint.load(path, session.model), path)
    popularity = session.data.train_item_counts()
    rankings = {
        split: session.ranker(batches, after_batch, popularity) for split, batches in session.splits.items()
    }
    results = {
        "checkpoint": which,
        "sha256": checkpoint.read_checksum(path),
        "epoch": state.epoch + (state.step > 0),
        "step": state.total_steps,
        "reason": reason,
        **{split: ranking.as_dict() for split, ranking in rankings.items()},
    }
    ranks = {split: Ranks.of(ranking) for split, ranking in rankings.items()}

    def write() -> None:
        # In this order, every folder that a killed process leaves is complete: a table has ranks, a final
        # record has a table.
        write_ranks(folder.ranks_path, ranks)
        folder.write_json(folder.results_path, results)
        folder.metrics.append({"kind": "final", **results})
        draw_curves(folder.curves_path, folder.metrics.read(), session.config.train.metric, console)

    session.processes.on_first(write)
    show_rankings(console, rankings, f"{folder.path.name}, {which}.safetensors ({state.describe()})")
    return rankings
