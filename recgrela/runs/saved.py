"""Loads the model and data of a saved run, and repeats its evaluation."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from recgrela.data import EvalBatches, Interactions, load_shared
from recgrela.evaluation.metrics import Ranking
from recgrela.evaluation.ranking import Ranker
from recgrela.models import CONFIGS, SequenceModel, build
from recgrela.parallel.processes import Processes
from recgrela.parallel.rows import RowShards
from recgrela.runs import checkpoint
from recgrela.runs.consistency import check_complete, check_data, check_settings, recorded_ids, recorded_items
from recgrela.runs.folder import CheckpointName, RunFolder
from recgrela.runs.items import Items, read_items, write_items
from recgrela.runs.lock import owned
from recgrela.runs.state import TrainState
from recgrela.settings.data import with_absolute_path
from recgrela.settings.fields import Option
from recgrela.settings.run import RunConfig, read_config
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write_text
from recgrela.system.graphs import CudaGraphs
from recgrela.system.out_of_memory import MemoryPhase

Split = Literal["valid", "test"]

MOVED_DATA = (  # options of commands that read a run's data again
    Option("data.path", None, "Path of the data if it has moved, or several as in training.", many="any"),
    Option("data.valid_path", None, "Path of the events of valid if it has moved (split by files)."),
    Option("data.test_path", None, "Path of the events of test if it has moved (split by files)."),
)


@dataclass(frozen=True)
class SavedRun:
    """A run's model in eval mode, and the checkpoint that its weights are from."""

    folder: RunFolder
    config: RunConfig
    model: SequenceModel
    device: torch.device
    checkpoint_path: Path
    state: TrainState

    @property
    def which(self) -> CheckpointName:
        """Which of the run's checkpoints it is."""
        return "last" if self.checkpoint_path == self.folder.checkpoint_path("last") else "best"

    def describe_checkpoint(self) -> str:
        """The name and progress of the checkpoint: "best.safetensors (after epoch 12, step 4800)"."""
        return f"{self.which}.safetensors ({self.state.describe()})"

    def read_items(self) -> Items:
        """The run's items. Raises RunError if their file is missing or damaged."""
        return read_items(self.folder.items_path, self.model.n_items, recorded_ids(self.folder))

    def parent_record(self) -> dict[str, str]:
        """What protocol.json of another run records if its weights are from this one."""
        return {
            "run": str(self.folder.path.resolve()),
            "checkpoint": f"{self.which}.safetensors",
            "sha256": hashlib.sha256(self.checkpoint_path.read_bytes()).hexdigest(),
            "trained": self.state.describe(),
        }


@MemoryPhase("loading the model", "this model needs more memory")
def load_run(
    path: Path, which: CheckpointName | None, device: torch.device, processes: Processes | None = None
) -> SavedRun:
    """Load the model of a run.

    Args:
        path: the run folder.
        which: the checkpoint; None for that of the final table.
        device: the model's device.
        processes: the processes that divide the item table if the run was trained so; None: only this one,
            with the whole table.

    A run that is training replaces its checkpoints meanwhile; then the new one is loaded.

    Raises:
        RunError: the folder is not a run folder or lost files, its files contradict each other, or the
            checkpoint is missing, damaged or does not fit the model.
    """
    folder = RunFolder.open(path)
    config = read_config(folder.config_path, CONFIGS)
    check_settings(folder, config)
    check_complete(folder)
    for _ in range(10):
        file = folder.find_checkpoint(which)
        try:
            model = _make_model(folder, config, file, processes or Processes()).to(device)
            state = TrainState.from_dict(checkpoint.load(file, model), file)
            return SavedRun(folder, config, model.eval(), device, file, state)
        except RunError:
            if folder.find_checkpoint(which) == file:
                raise
    raise RunError(f"{folder.path}: its checkpoints are renamed again and again while they are read")


def _make_model(folder: RunFolder, config: RunConfig, file: Path, processes: Processes) -> SequenceModel:
    """A model of the size that checkpoint and protocol agree on, which is checked before it is allocated."""
    items, meta = recorded_items(folder), checkpoint.read_meta(file)
    if meta["n_items"] != items:
        raise RunError(f"{file}: has {meta['n_items']} items, but {folder.protocol_path} has {items}")
    shards = RowShards.over(processes, items, config.train.shard_items)
    return build(config.model, items, config.data.max_len, shards)


def save_weights(run: SavedRun, items: Items, path: Path) -> None:
    """Write a folder that `load_run` takes: weights, settings and items, without the state of training.

    Raises:
        RunError: the folder exists or cannot be written; then nothing of it is left.
    """
    protocol = run.folder.read_protocol()
    folder = RunFolder.create(path.parent, path.name, "")
    try:
        with owned(folder.path):
            checkpoint.save(folder.checkpoint_path("best"), run.model, run.state.as_dict())
            write_items(folder.items_path, items)
            atomic_write_text(folder.config_path, run.config.to_yaml())
            folder.write_json(folder.protocol_path, protocol)  # the last file, as `RunFolder.open` needs all
    except BaseException:
        shutil.rmtree(folder.path)
        raise


def load_data(
    run: SavedRun,
    path: str | list[str] | None = None,
    processes: Processes | None = None,
    *,
    valid_path: str | None = None,
    test_path: str | None = None,
) -> Interactions:
    """Load a run's data, from other paths if they have moved.

    Args:
        run: the run.
        path, valid_path, test_path: paths instead of the run's.
        processes: the processes that use the data, all of which call this function; None: only this one.

    Raises:
        DataError: the data cannot be read.
        RunError: the data differs from that of the run.
    """
    paths = {"path": path, "valid_path": valid_path, "test_path": test_path}
    moved: dict[str, Any] = {name: value for name, value in paths.items() if value is not None}
    data = load_shared(with_absolute_path(replace(run.config.data, **moved)), processes or Processes())
    check_data(run.folder, data)
    return data


def moved_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `load_data` that the options `MOVED_DATA` give."""
    return {option.key.removeprefix("data."): options[option.key] for option in MOVED_DATA}


def evaluate(
    run: SavedRun,
    data: Interactions,
    splits: Sequence[Split] = ("valid", "test"),
    batch_size: int = 256,
    processes: Processes | None = None,
    cutoffs: Sequence[int] | None = None,
) -> dict[str, Ranking]:
    """Rank the items for the users of some splits with a saved run's model.

    Args:
        run: the run.
        data: its data.
        splits: the splits.
        batch_size: users per batch.
        processes: the processes that share the batches; None: only this one.
        cutoffs: the cut-offs of the metrics; None: those of the run.

    Returns:
        A ranking for each split, with the figures of recommended items.
    """
    config, on_device, device_type = run.config, data.to(run.device), run.device.type
    # As in training, because batches that are filled up for graphs round differently.
    use_graphs = device_type == "cuda" and config.train.cuda_graphs != "false"
    capture = CudaGraphs(run.device) if use_graphs else None
    history_len, max_tokens = config.data.history_len, config.max_tokens(device_type)
    processes, counts = processes or Processes(), data.train_item_counts()
    popularity = torch.nn.functional.pad(counts, (0, run.model.n_items - data.n_items))  # items added later
    cutoffs = cutoffs or config.train.cutoff_numbers
    rankings: dict[str, Ranking] = {}
    ranker = None
    for split in splits:
        batches = EvalBatches(
            on_device,
            split,
            history_len,
            batch_size,
            run.device,
            max_users=config.data.eval_users,
            rank=processes.rank,
            world=processes.world,
        )
        ranker = ranker or Ranker(run.model, batches, max_tokens, capture, processes, cutoffs)
        rankings[split] = ranker(batches, popularity=popularity)
    return rankings
