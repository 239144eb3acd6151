"""Loads the model and data of a saved run, and repeats its evaluation."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from recgrela.data import EvalBatches, Interactions, load
from recgrela.evaluation.metrics import Ranking
from recgrela.evaluation.ranking import Ranker
from recgrela.models import CONFIGS, SequenceModel, build
from recgrela.runs import checkpoint
from recgrela.runs.consistency import check_data, recorded_items
from recgrela.runs.folder import CheckpointName, RunFolder
from recgrela.runs.items import Items, read_items, write_items
from recgrela.runs.state import TrainState
from recgrela.settings.data import with_absolute_path
from recgrela.settings.run import RunConfig, read_config
from recgrela.system.files import atomic_write_text
from recgrela.system.graphs import CudaGraphs
from recgrela.system.out_of_memory import MemoryPhase

Split = Literal["valid", "test"]


@dataclass(frozen=True)
class SavedRun:
    """A run's model in eval mode, and the checkpoint that its weights are from."""

    folder: RunFolder
    config: RunConfig
    model: SequenceModel
    device: torch.device
    checkpoint_path: Path
    state: TrainState

    def describe_checkpoint(self) -> str:
        """The name and progress of the checkpoint: "best.safetensors (after epoch 12, step 4800)"."""
        return f"{self.checkpoint_path.name} ({self.state.describe()})"

    def read_items(self) -> Items:
        """The run's items. Raises RunError if their file is missing or damaged."""
        return read_items(self.folder.items_path, self.model.n_items)

    def parent_record(self) -> dict[str, str]:
        """What protocol.json of another run records if its weights are from this one."""
        return {
            "run": str(self.folder.path.resolve()),
            "checkpoint": self.checkpoint_path.name,
            "sha256": hashlib.sha256(self.checkpoint_path.read_bytes()).hexdigest(),
            "trained": self.state.describe(),
        }


@MemoryPhase("loading the model", "this model needs more memory")
def load_run(path: Path, which: CheckpointName | None, device: torch.device) -> SavedRun:
    """Load the model of a run.

    Args:
        path: the run folder.
        which: the checkpoint; None for that of the final table.
        device: the model's device.

    Raises:
        RunError: the folder is not a run folder, or the checkpoint is missing or does not fit the model.
    """
    folder = RunFolder.open(path)
    config = read_config(folder.config_path, CONFIGS)
    model = build(config.model, recorded_items(folder), config.data.max_len).to(device)
    file = folder.find_checkpoint(which)
    state = TrainState.from_dict(checkpoint.load(file, model), file)
    return SavedRun(folder, config, model.eval(), device, file, state)


def save_weights(run: SavedRun, items: Items, path: Path) -> None:
    """Write a folder that `load_run` takes: weights, settings and items, without the state of training.

    Raises:
        RunError: the folder exists or cannot be written; then nothing of it is left.
    """
    protocol = run.folder.read_protocol()
    folder = RunFolder.create(path.parent, path.name, "")
    try:
        atomic_write_text(folder.config_path, run.config.to_yaml())
        folder.write_json(folder.protocol_path, protocol)
        write_items(folder.items_path, items)
        checkpoint.save(folder.checkpoint_path("best"), run.model, run.state.as_dict())
    except BaseException:
        shutil.rmtree(folder.path)
        raise


def load_data(run: SavedRun, path: str | None = None) -> Interactions:
    """Load a run's data, from `path` if it has moved.

    Raises:
        DataError: the data cannot be read.
        RunError: the data differs from that of the run.
    """
    config = run.config.data if path is None else replace(run.config.data, path=path)
    data = load(with_absolute_path(config))
    check_data(run.folder, data)
    return data


def evaluate(
    run: SavedRun, data: Interactions, splits: Sequence[Split] = ("valid", "test"), batch_size: int = 256
) -> dict[str, Ranking]:
    """Rank the items for the users of some splits with a saved run's model.

    Returns:
        A ranking for each split.
    """
    config, on_device, device_type = run.config, data.to(run.device), run.device.type
    # As in training, because batches that are filled up for graphs round differently.
    use_graphs = device_type == "cuda" and config.train.cuda_graphs != "false"
    capture = CudaGraphs(run.device) if use_graphs else None
    history_len, max_tokens = config.data.history_len, config.max_tokens(device_type)
    rankings: dict[str, Ranking] = {}
    ranker = None
    for split in splits:
        batches = EvalBatches(on_device, split, history_len, batch_size, run.device)
        ranker = ranker or Ranker(run.model, batches, max_tokens, capture)
        rankings[split] = ranker(batches)
    return rankings
