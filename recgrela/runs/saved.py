"""Opens a run folder for use: its model with trained weights, and its data, checked to be the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from recgrela.data import EvalBatches, Interactions, load
from recgrela.evaluation.metrics import Ranking
from recgrela.evaluation.ranking import rank_all
from recgrela.models import CONFIGS, SequenceModel, build
from recgrela.runs import checkpoint
from recgrela.runs.folder import RunFolder, Which
from recgrela.runs.protocol import fixed_settings, packed_sha256
from recgrela.runs.state import TrainState
from recgrela.settings.data import with_absolute_path
from recgrela.settings.run import RunConfig, read_config
from recgrela.settings.yaml import flatten
from recgrela.system.errors import RunError

Split = Literal["valid", "test"]


@dataclass(frozen=True)
class SavedRun:
    """A run's model in eval mode, and where it came from."""

    folder: RunFolder
    config: RunConfig
    model: SequenceModel
    device: torch.device
    checkpoint_path: Path
    state: TrainState

    def describe_checkpoint(self) -> str:
        """Such as "best.safetensors (epoch 12, step 4800)"."""
        return f"{self.checkpoint_path.name} ({describe_state(self.state)})"


def describe_state(state: TrainState) -> str:
    """How far the weights of a checkpoint were trained."""
    if state.step:
        return f"{state.step} steps into epoch {state.epoch + 1}, step {state.total_steps}"
    return f"after epoch {state.epoch}, step {state.total_steps}"


def load_run(path: Path, which: Which | None, device: torch.device) -> SavedRun:
    """The model of a run; `which` None takes the weights of its final table.

    Raises:
        RunError: not a run folder, no such checkpoint, or one of another model.
    """
    folder = RunFolder.open(path)
    config = read_config(folder.config_path, CONFIGS)
    n_items = recorded_data(folder)["items"]
    model = build(config.model, n_items, config.data.max_len).to(device)
    file = folder.find_checkpoint(which)
    state = TrainState.from_dict(checkpoint.load(file, model), file)
    return SavedRun(folder, config, model.eval(), device, file, state)


def load_data(run: SavedRun, path: str | None = None) -> Interactions:
    """A run's data, from `path` if it has moved.

    Raises:
        DataError: it cannot be read.
        RunError: it is not what the run was made with.
    """
    config = run.config.data if path is None else replace(run.config.data, path=path)
    data = load(with_absolute_path(config))
    check_data(run.folder, data)
    return data


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
        rankings[split] = rank_all(run.model, batches, run.device, run.config.max_tokens(run.device.type))
    return rankings


def check_data(folder: RunFolder, data: Interactions) -> None:
    """Raises RunError if the data is not what the run was made with."""
    recorded = recorded_data(folder)
    if data.sha256 != recorded["sha256"]:
        raise RunError(
            f"{data.description['source']}: not the data of this run: sha256 {data.sha256[:16]}..., the run "
            f"was made with {recorded['sha256'][:16]}..."
        )
    counts = [(name, data.description[name], recorded[name]) for name in ("users", "items", "events")]
    for name, now, then in counts:
        if now != then:
            raise RunError(f"{data.description['source']}: {now} {name} after filtering, the run had {then}")
    if packed_sha256(data) != recorded["packed_sha256"]:
        raise RunError(
            f"{data.description['source']}: not the events of this run, or in another order; restore the "
            f"section data of {folder.config_path} (order, filter, columns)"
        )


def check_settings(folder: RunFolder, config: RunConfig) -> None:
    """Raises RunError if a setting that a run keeps is not what it began with: config.yaml was edited."""
    content = folder.read_protocol()
    recorded = content["settings"] | flatten({"model": content["model"]})
    for key, value in fixed_settings(config).items():
        if key not in recorded:
            raise RunError(
                f"{folder.protocol_path}: the setting {key} is missing: the run was made by another version "
                "of recgrela, or the file is damaged; start a new run"
            )
        if value != recorded[key]:
            raise RunError(
                f"{folder.config_path}: {key} is {value!r}, the run began with {recorded[key]!r}; "
                "set it back, or start a new run"
            )


def recorded_data(folder: RunFolder) -> dict[str, Any]:
    """The section `data` of protocol.json. Raises RunError if it is not there."""
    section = folder.read_protocol()["data"]
    kinds = {"sha256": str, "packed_sha256": str, "users": int, "items": int, "events": int}
    for key, kind in kinds.items():
        if not isinstance(section.get(key), kind):
            raise RunError(f"{folder.protocol_path}: damaged: data.{key} is {section.get(key)!r}")
    return section
