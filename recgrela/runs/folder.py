"""The folder that a run leaves behind: what lies where, made once and never overwritten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recgrela.data import Interactions
from recgrela.system.errors import RunError
from recgrela.system.files import append_text, atomic_write, atomic_write_text
from recgrela.system.suggest import near_file

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
class Ranks:
    """The rank (from 1) of each user's target in a split.

    Attributes:
        users: [U] int64, rows of the data.
        unmasked: [U] int32, all items ranked.
        masked: [U] int32, the seen items removed.
    """

    users: np.ndarray
    unmasked: np.ndarray
    masked: np.ndarray


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
    ranks.safetensors the ranks that the final table is made of
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
            if path.exists():
                raise RunError(
                    f"{path}: is a file, not a run folder; give the folder that holds the run's files"
                )
            raise RunError(f"{path}: there is no such run folder{near_file(path)}")
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
    def ranks_path(self) -> Path:
        return self.path / "ranks.safetensors"

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
        order: list[str] = [which] if which is not None else ["best", "last"]
        why = "did the run end before its first checkpoint?"
        if which is None and self.results_path.is_file():
            recorded = str(self.read_json(self.results_path).get("checkpoint"))
            if recorded not in get_args(Which):
                raise RunError(f"{self.results_path}: damaged: checkpoint is {recorded!r}")
            order = [recorded]
            why = "results.json is of it; restore it (evaluate takes another by --checkpoint)"
        for name in order:
            path = self.path / f"{name}.safetensors"
            if path.is_file():
                return path
        raise RunError(f"{self.path}: there is no {order[0]}.safetensors; {why}")

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

    def read_protocol(self) -> dict[str, Any]:
        """protocol.json, its sections being there. Raises RunError if it is missing or damaged."""
        content = self.read_json(self.protocol_path)
        for section in ("data", "model", "settings", "machine", "versions"):
            if not isinstance(content.get(section), dict):
                raise RunError(f"{self.protocol_path}: damaged: the section {section!r} is missing")
        resumed = content.get("resumed", [])
        if not isinstance(resumed, list) or not all(isinstance(entry, dict) for entry in resumed):
            raise RunError(f"{self.protocol_path}: damaged: 'resumed' is not a list of objects")
        return content

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl. Raises RunError if it cannot be written."""
        append_text(self.metrics_path, json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records; a last line that a killed process left half-written is dropped.

        Raises:
            RunError: another line is damaged.
        """
        if not self.metrics_path.is_file():
            return []
        lines = self.metrics_path.read_bytes().splitlines()
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line.decode("utf-8"))
            except ValueError as error:
                if number < len(lines):
                    raise RunError(f"{self.metrics_path}: line {number} is damaged: {error}") from error
                break
            if not _is_record(record):
                raise RunError(
                    f"{self.metrics_path}: line {number} is damaged: not a record of an epoch or run"
                )
            records.append(record)
        return records

    def epoch_records(self) -> list[dict[str, Any]]:
        """The records of whole epochs, in order."""
        return [record for record in self.read_metrics() if record["kind"] == "epoch"]

    def first_epochs(self, epochs: int) -> list[dict[str, Any]]:
        """The records of the first `epochs` epochs. Raises RunError if some are missing."""
        kept = [record for record in self.epoch_records() if record["epoch"] <= epochs]
        missing = sorted(set(range(1, epochs + 1)) - {record["epoch"] for record in kept})
        if missing:
            raise RunError(
                f"{self.metrics_path}: lacks {len(missing)} epochs between {missing[0]} and {missing[-1]}; "
                "restore the file, or start a new run"
            )
        return kept

    def rewrite_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep these records only: what a resumed run repeats is written again."""
        self.write_text(self.metrics_path, "".join(json.dumps(record) + "\n" for record in records))

    def write_ranks(self, ranks: Mapping[str, Ranks]) -> None:
        """Write ranks.safetensors, so that statistics over users need no second evaluation."""
        arrays = {
            f"{split}/{name}": value
            for split, of_split in ranks.items()
            for name, value in vars(of_split).items()
        }
        atomic_write(self.ranks_path, lambda temporary: save_file(arrays, temporary))

    def read_ranks(self, split: str) -> Ranks:
        """The ranks of a split. Raises RunError if the file is missing or damaged."""
        if not self.ranks_path.is_file():
            raise RunError(f"{self.ranks_path}: there is no such file")
        try:
            arrays = load_file(self.ranks_path)
            ranks = Ranks(*(arrays[f"{split}/{field.name}"] for field in fields(Ranks)))
        except (OSError, SafetensorError, KeyError) as error:
            raise RunError(f"{self.ranks_path}: damaged: {error}") from error
        if not len(ranks.users) == len(ranks.unmasked) == len(ranks.masked) > 0:
            raise RunError(f"{self.ranks_path}: damaged: users and ranks differ in number")
        return ranks

    def write_items(self, data: Interactions) -> None:
        """Write items.parquet, so that recommendations have titles without the data."""
        titles = data.titles if data.titles is not None else [None] * data.n_items
        columns = {"item_id": pa.array(data.item_ids, pa.string()), "title": pa.array(titles, pa.string())}
        table = pa.table(columns)
        atomic_write(self.items_path, lambda temporary: pq.write_table(table, temporary))

    def read_items(self, n_items: int) -> Items:
        """Raises RunError if items.parquet is missing, damaged or not of `n_items` items."""
        if not self.items_path.is_file():
            raise RunError(f"{self.items_path}: there is no such file")
        try:
            table = pq.read_table(self.items_path)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{self.items_path}: damaged: {error}") from error
        if table.schema.names != ["item_id", "title"] or set(table.schema.types) != {pa.string()}:
            raise RunError(f"{self.items_path}: damaged: expected the text columns item_id and title")
        if len(table) != n_items:
            raise RunError(f"{self.items_path}: damaged: {len(table)} items, the run has {n_items}")
        return Items(table["item_id"].to_pylist(), table["title"].to_pylist())


def _is_record(record: object) -> bool:
    """Whether a line of metrics.jsonl has what the curves and a resumed run need."""
    if not isinstance(record, dict) or record.get("kind") not in ("epoch", "partial", "final"):
        return False
    needed = {"epoch", "step", "loss", "seconds", "improved", "valid", "loss_curve"}
    return record["kind"] == "final" or (needed <= record.keys() and isinstance(record["epoch"], int))


def stem_of(data_path: str, preset: str) -> str:
    """The start of a run folder's name: the data's file name without endings, and the preset."""
    name = Path(data_path).name
    for ending in (".gz", ".zip", ".inter", ".csv", ".parquet", ".dat"):
        name = name.removesuffix(ending)
    return f"{name or 'data'}-{preset}"
