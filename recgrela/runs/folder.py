"""The run folder: its paths, its creation, and its JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from recgrela.runs.metrics_file import MetricsFile
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write_text
from recgrela.system.suggest import near_file

CheckpointName = Literal["best", "last"]


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run. A run is created once and never overwritten.

    config.yaml       all settings; a valid --config file
    protocol.json     data hash, filter, order, split, masking, ties, seeds, versions
    items.parquet     original ids and titles of the items
    metrics.jsonl     a record for each epoch and one for the final result
    curves.png        loss and NDCG@10
    best.safetensors  weights of the best epoch
    last.safetensors  weights and training state of the last step, from which training resumes
    ranks.safetensors each user's ranks, from which the final table is computed
    results.json      the final table
    """

    path: Path

    @classmethod
    def create(cls, output: Path, name: str | None, stem: str) -> RunFolder:
        """Make the folder `output/name`; without a name, `stem` and the current time.

        Raises:
            RunError: the name is taken, or the folder cannot be created.
        """
        chosen = name or f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
        for attempt in range(1, 100):
            path = output / (chosen if attempt == 1 else f"{chosen}-{attempt}")
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError as error:
                if name is not None:
                    raise RunError(
                        f"{path}: the name is taken, and runs are never overwritten; choose another "
                        f"--train.name, or resume that run with --resume {path}"
                    ) from error
            except OSError as error:
                raise RunError(f"cannot create the run folder {path}: {error.strerror}") from error
        raise RunError(f"{output / chosen}: 99 runs have this name; choose another --train.name")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder. Raises RunError, which names what is missing, if it is not one."""
        if not path.is_dir():
            if path.exists():
                raise RunError(f"{path}: is a file, not a run folder; give the folder that contains it")
            raise RunError(f"{path}: no such run folder{near_file(path)}")
        folder = cls(path)
        missing = [file.name for file in (folder.config_path, folder.protocol_path) if not file.is_file()]
        if missing:
            raise RunError(f"{path}: not a run folder: {' and '.join(missing)} missing")
        return folder

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def protocol_path(self) -> Path:
        return self.path / "protocol.json"

    @property
    def items_path(self) -> Path:
        return self.path / "items.parquet"

    @property
    def results_path(self) -> Path:
        return self.path / "results.json"

    @property
    def ranks_path(self) -> Path:
        return self.path / "ranks.safetensors"

    @property
    def curves_path(self) -> Path:
        return self.path / "curves.png"

    @property
    def metrics(self) -> MetricsFile:
        return MetricsFile(self.path / "metrics.jsonl")

    def checkpoint_path(self, which: CheckpointName) -> Path:
        return self.path / f"{which}.safetensors"

    def find_checkpoint(self, which: CheckpointName | None = None) -> Path:
        """An existing checkpoint. None selects the one of the final table; without a table, best, else last.

        Raises:
            RunError: the checkpoint is missing.
        """
        order: list[str] = [which] if which is not None else ["best", "last"]
        hint = "did the run end before its first checkpoint?"
        if which is None and self.results_path.is_file():
            recorded = str(self.read_json(self.results_path).get("checkpoint"))
            if recorded not in get_args(CheckpointName):
                raise RunError(f"{self.results_path}: damaged: checkpoint is {recorded!r}")
            order = [recorded]
            hint = "results.json was computed from it; restore the file, or choose another with --checkpoint"
        for name in order:
            path = self.path / f"{name}.safetensors"
            if path.is_file():
                return path
        raise RunError(f"{self.path}: {order[0]}.safetensors is missing; {hint}")

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """The object in a JSON file. Raises RunError if the file is missing or damaged."""
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"{path}: no such file") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: damaged: {error}") from error
        if not isinstance(content, dict):
            raise RunError(f"{path}: damaged: expected an object")
        return content

    def read_protocol(self) -> dict[str, Any]:
        """protocol.json with all its sections. Raises RunError if it is missing or damaged."""
        content = self.read_json(self.protocol_path)
        for section in ("data", "model", "settings", "machine", "versions"):
            if not isinstance(content.get(section), dict):
                raise RunError(f"{self.protocol_path}: damaged: the section {section!r} is missing")
        for section in ("resumed", "growth"):
            entries = content.get(section, [])
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise RunError(f"{self.protocol_path}: damaged: {section!r} is not a list of objects")
        return content


def stem_of(data_path: str, preset: str) -> str:
    """The start of a run folder's default name: the data's file name without suffixes, and the preset."""
    name = Path(data_path).name
    for suffix in (".gz", ".zip", ".inter", ".csv", ".parquet", ".dat"):
        name = name.removesuffix(suffix)
    return f"{name or 'data'}-{preset}"
