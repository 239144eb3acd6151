"""The folder that a run leaves behind: what lies where, made once and never overwritten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from recgrela.data import Interactions
from recgrela.errors import RunError
from recgrela.files import atomic_write, atomic_write_text
from recgrela.suggest import near_miss

Which = Literal["best", "last"]


@dataclass(frozen=True)
class Items:
    """The item table of a run: original ids and titles by item id; row 0 is padding."""

    tokens: list[str]
    titles: list[str | None]

    def title(self, item: int) -> str:
        """The title, or the original id where there is none."""
        return self.titles[item] or self.tokens[item]


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of a run.

    config.yaml       every setting; a valid --config file
    protocol.json     data hash, filter, order, split, masking, ties, seeds, versions
    items.parquet     original ids and titles of the items
    metrics.jsonl     one object per epoch, then the final one
    curves.png        loss and NDCG@10
    best.safetensors  weights of the best epoch
    last.safetensors  all that is needed to go on
    results.json      the final table
    """

    path: Path

    @classmethod
    def create(cls, output: Path, name: str | None, stem: str) -> RunFolder:
        """Make a new folder `output/name`; without a name, `stem` and the time.

        Raises:
            RunError: the name is taken, or the folder cannot be made.
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
                        f"{path}: the name is taken, and a run is never overwritten; choose another "
                        f"--train.name, or go on with that run by --resume {path}"
                    ) from error
            except OSError as error:
                raise RunError(f"cannot make the run folder {path}: {error.strerror}") from error
        raise RunError(f"{output / chosen}: 99 runs have this name")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises RunError, which names what is missing, if the folder is not one."""
        if not path.is_dir():
            siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            kind = "is a file, not" if path.exists() else "there is no such"
            raise RunError(f"{path}: {kind} run folder{near_miss(path.name, siblings)}")
        folder = cls(path)
        missing = [file.name for file in (folder.config_path, folder.protocol_path) if not file.is_file()]
        if missing:
            raise RunError(f"{path}: not a run folder, {' and '.join(missing)} missing")
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
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results_path(self) -> Path:
        return self.path / "results.json"

    @property
    def curves_path(self) -> Path:
        return self.path / "curves.png"

    def checkpoint_path(self, which: Which) -> Path:
        return self.path / f"{which}.safetensors"

    def find_checkpoint(self, which: Which | None = None) -> Path:
        """A checkpoint to use; without `which`, that of the final table, else best, else last.

        Raises:
            RunError: it is not there.
        """
        if which is None:
            results = self.read_json(self.results_path) if self.results_path.is_file() else {}
            recorded: Which = "last" if results.get("checkpoint") == "last" else "best"
            order = [self.checkpoint_path(recorded), self.checkpoint_path("last")]
        else:
            order = [self.checkpoint_path(which)]
        for path in order:
            if path.is_file():
                return path
        raise RunError(
            f"{self.path}: there is no {order[0].name}; did the run end before its first checkpoint?"
        )

    def write_text(self, path: Path, text: str) -> None:
        atomic_write_text(path, text)

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """Raises RunError if the file is missing or damaged."""
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"{path}: there is no such file") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: damaged: {error}") from error
        if not isinstance(content, dict):
            raise RunError(f"{path}: damaged: expected an object")
        return content

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl. Raises RunError if it cannot be written."""
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.metrics_path}: {error.strerror}") from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records; a last line that a killed process left half-written is dropped.

        Raises:
            RunError: another line is damaged.
        """
        if not self.metrics_path.is_file():
            return []
        lines = self.metrics_path.read_text("utf-8").splitlines()
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise RunError(f"{self.metrics_path}: line {number} is damaged: {error}") from error
        return records

    def epoch_records(self) -> list[dict[str, Any]]:
        """The records of whole epochs, in order."""
        return [record for record in self.read_metrics() if record["kind"] == "epoch"]

    def rewind_metrics(self, epochs: int) -> None:
        """Keep the records of the first `epochs` epochs only: what a resumed run repeats is written again."""
        kept = [record for record in self.epoch_records() if record["epoch"] <= epochs]
        atomic_write_text(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))

    def write_items(self, data: Interactions) -> None:
        """Write items.parquet, so that recommendations have titles without the data."""
        titles = data.titles if data.titles is not None else [None] * data.n_items
        columns = {"item_id": pa.array(data.item_ids, pa.string()), "title": pa.array(titles, pa.string())}
        table = pa.table(columns)
        atomic_write(self.items_path, lambda temporary: pq.write_table(table, temporary))

    def read_items(self) -> Items:
        """Raises RunError if items.parquet is missing or damaged."""
        if not self.items_path.is_file():
            raise RunError(f"{self.items_path}: there is no such file")
        try:
            table = pq.read_table(self.items_path, columns=["item_id", "title"])
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{self.items_path}: damaged: {error}") from error
        return Items(table["item_id"].to_pylist(), table["title"].to_pylist())


def stem_of(data_path: str, preset: str) -> str:
    """The start of a run folder's name: the data's file name without endings, and the preset."""
    name = Path(data_path).name
    for ending in (".gz", ".zip", ".inter", ".csv", ".parquet", ".dat"):
        name = name.removesuffix(ending)
    return f"{name or 'data'}-{preset}"
