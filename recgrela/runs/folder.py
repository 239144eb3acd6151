"""The run folder: its paths, its creation, and its JSON files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from glob import has_magic
from pathlib import Path
from typing import Any, Literal, get_args

from recgrela.runs import checkpoint
from recgrela.runs.metrics_file import MetricsFile
from recgrela.runs.state import TrainState
from recgrela.runs.values import check_count, is_scores, read_object
from recgrela.system.errors import ConfigError, RunError
from recgrela.system.files import atomic_stream, flush_file
from recgrela.system.suggest import near_file

CheckpointName = Literal["best", "last"]

FORMAT = 2  # of the JSON files
_CHECKSUM = "checksum"


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run. A run is created once and never overwritten.

    config.yaml       all settings; a valid --config file
    protocol.json     data hash, filter, order, split, masking, ties, seeds, versions
    items.parquet     original ids and titles of the items
    metrics.jsonl     a record for each epoch and one for the final result
    curves.png        loss and NDCG@10
    best.safetensors  weights of the best epoch, which last.safetensors names
    last.safetensors  weights and training state of the last step, from which training resumes
    ranks.safetensors each user's ranks, from which the final table is computed
    results.json      the final table
    .lock             the process that writes the folder (see `recgrela.runs.lock`)
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
        needed = (folder.config_path, folder.protocol_path, folder.items_path)
        missing = [file.name for file in needed if not file.is_file()]
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

    def check_not_own(self, path: Path, option: str) -> None:
        """Raises ConfigError, which names the option, if a file to write would replace one of the run."""
        own = (
            self.config_path,
            self.protocol_path,
            self.items_path,
            self.results_path,
            self.ranks_path,
            self.curves_path,
            self.metrics.path,
        )
        if path.resolve() in [file.resolve() for file in own]:
            raise ConfigError(f"{option}: {path} is a file of the run; give another name")

    def checkpoint_path(self, which: CheckpointName) -> Path:
        return self.path / f"{which}.safetensors"

    @property
    def next_best_path(self) -> Path:
        return self.path / "best.next.safetensors"

    def find_checkpoint(self, which: CheckpointName | None = None) -> Path:
        """An existing checkpoint. None selects the one of the final table; without a table, best, else last.

        The best checkpoint is the one that last.safetensors names. A process that is killed may leave it
        under its first name, best.next.safetensors.

        Raises:
            RunError: the checkpoint is missing, or is not the one that the table is from or that
                last.safetensors names.
        """
        order: list[CheckpointName] = [which] if which is not None else ["best", "last"]
        hint = "did the run end before its first checkpoint?"
        recorded = None
        if which is None and self.results_path.is_file():
            results = self.read_results()
            order, recorded = [results["checkpoint"]], results.get("sha256")
            hint = "results.json was computed from it; restore the file, or choose another with --checkpoint"
        for name in order:
            path = self._find_best() if name == "best" else self.checkpoint_path("last")
            if path is None or not path.is_file():
                continue
            if recorded is not None and checkpoint.read_checksum(path) != recorded:
                raise RunError(
                    f"{path}: not the checkpoint that {self.results_path.name} was computed from; restore "
                    "the file, or choose another with --checkpoint"
                )
            return path
        raise RunError(f"{self.path}: {order[0]}.safetensors is missing; {hint}")

    def _find_best(self) -> Path | None:
        """The best checkpoint that last.safetensors names, None if it names none.

        Raises:
            RunError: the checkpoint is missing, or only another one is there.
        """
        for _ in range(10):
            before = self._stamps()
            try:
                return self._look_for_best()
            except RunError:
                if self._stamps() == before:
                    raise  # else a run that is training has replaced a file meanwhile
        raise RunError(f"{self.path}: its checkpoints are replaced again and again while they are read")

    def _stamps(self) -> list[tuple[int, int] | None]:
        """What changes when a checkpoint is replaced, for each of them."""
        stamps: list[tuple[int, int] | None] = []
        for path in (self.checkpoint_path("best"), self.next_best_path, self.checkpoint_path("last")):
            try:
                found = path.stat()
                stamps.append((found.st_ino, found.st_mtime_ns))
            except FileNotFoundError:
                stamps.append(None)
        return stamps

    def _look_for_best(self) -> Path | None:
        best, last = self.checkpoint_path("best"), self.checkpoint_path("last")
        if not last.is_file() or self.read_protocol().get("growth"):  # with weights only
            return best if best.is_file() else None
        state = TrainState.from_dict(checkpoint.read_meta(last)["state"], last)
        if state.best_score is None:
            return None
        found = [path for path in (best, self.next_best_path) if path.is_file()]
        for path in found:
            if is_best(path, state):
                return path
        if found:
            raise RunError(
                f"{found[0]}: not the best checkpoint that {last.name} names, of epoch {state.best_epoch}; "
                "restore the file"
            )
        if self.results_path.is_file():
            return None
        raise RunError(
            f"{self.path}: best.safetensors is missing, of epoch {state.best_epoch}; restore the file, or "
            "use --checkpoint last"
        )

    def settle_best(self, state: TrainState) -> None:
        """Complete or undo the replacement of the best checkpoint, so that it is the one that `state` names.

        Args:
            state: the state in last.safetensors.

        Raises:
            RunError: a file cannot be renamed or removed.
        """
        try:
            if self.next_best_path.is_file():
                if is_best(self.next_best_path, state):
                    os.replace(self.next_best_path, self.checkpoint_path("best"))
                else:
                    self.next_best_path.unlink()
                flush_file(self.path)
        except OSError as error:
            raise RunError(f"cannot replace {self.checkpoint_path('best')}: {error.strerror}") from error

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write an object with a checksum, which `read_json` checks."""
        whole = {"format": FORMAT, **content, _CHECKSUM: _checksum(content)}
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        with atomic_stream(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # names of files may not be UTF-8

    def read_json(self, path: Path) -> dict[str, Any]:
        """The object in a JSON file. Raises RunError if the file is missing or damaged.

        A file of an earlier version has neither a format nor a checksum.
        """
        try:
            text = path.read_bytes()
        except FileNotFoundError as error:
            raise RunError(f"{path}: no such file") from error
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from error
        content = read_object(path, text, "its content")
        version, checksum = content.pop("format", None), content.pop(_CHECKSUM, None)
        if version is None and checksum is None:
            return content
        if version != FORMAT:
            raise RunError(f"{path}: format {version!r:.100}, but this version reads format {FORMAT}")
        if checksum != _checksum(content):
            raise RunError(f"{path}: damaged: its content does not have its checksum; restore the file")
        return content

    def read_results(self) -> dict[str, Any]:
        """results.json. Raises RunError if it is missing or damaged."""
        path = self.results_path
        content = self.read_json(path)
        if content.get("checkpoint") not in get_args(CheckpointName):
            raise RunError(f"{path}: damaged: checkpoint is {content.get('checkpoint')!r:.100}")
        for key in ("epoch", "step"):
            check_count(path, key, content.get(key))
        for split in ("valid", "test"):
            if not is_scores(content.get(split)):
                raise RunError(f"{path}: damaged: {split} is not a table of metrics")
        return content

    def read_protocol(self) -> dict[str, Any]:
        """protocol.json with all its sections. Raises RunError if it is missing or damaged."""
        content = self.read_json(self.protocol_path)
        for section in ("data", "model", "settings", "machine", "versions"):
            if not isinstance(content.get(section), dict):
                raise RunError(f"{self.protocol_path}: damaged: the section {section!r} is missing")
        if not isinstance(content.get("items", {}), dict):
            raise RunError(f"{self.protocol_path}: damaged: 'items' is not an object")
        for section in ("resumed", "growth"):
            entries = content.get(section, [])
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise RunError(f"{self.protocol_path}: damaged: {section!r} is not a list of objects")
        return content


def is_best(path: Path, state: TrainState) -> bool:
    """Whether a file is the best checkpoint that the state in last.safetensors names.

    States of earlier versions name its epoch only.
    """
    if state.best_sha256 is not None:
        return checkpoint.read_checksum(path) == state.best_sha256
    return TrainState.from_dict(checkpoint.read_meta(path)["state"], path).epoch == state.best_epoch


def stem_of(data_path: str | list[str], preset: str) -> str:
    """The start of a run folder's default name: the data's file name without suffixes, and the preset.

    The name of a pattern is the folder's, and that of several paths the first one's.
    """
    path = Path(data_path if isinstance(data_path, str) else data_path[0])
    name = next((part for part in reversed(path.parts) if not has_magic(part)), "").strip("/")
    for suffix in (".gz", ".zip", ".inter", ".csv", ".parquet", ".dat", ".arrow", ".feather"):
        name = name.removesuffix(suffix)
    return f"{name or 'data'}-{preset}"


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
