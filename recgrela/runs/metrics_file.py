"""metrics.jsonl: a record for each epoch of a run and one for its final result."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from recgrela.runs.values import is_count, is_number, is_scores, read_object
from recgrela.system.errors import RunError
from recgrela.system.files import append_text, atomic_write_text

_CHECKSUM = "crc32"  # of the record without it


@dataclass(frozen=True)
class MetricsFile:
    """A file of JSON records, a line each."""

    path: Path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record. Raises RunError if the file cannot be written."""
        append_text(self.path, _line(record))

    def read(self) -> list[dict[str, Any]]:
        """All records; none if there is no file.

        A last line without an end, which a killed process left, is dropped. Lines of earlier versions have no
        checksum.

        Raises:
            RunError: a line is damaged, or epochs are not in order.
        """
        if not self.path.is_file():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        records: list[dict[str, Any]] = []
        checked = 0
        for number, line in enumerate(lines, 1):
            where = f"line {number}"
            record = read_object(self.path, line, where)
            checksum = record.pop(_CHECKSUM, None)
            if checksum is not None and checksum != _checksum(record):
                raise RunError(f"{self.path}: damaged: {where} does not have its checksum; restore the file")
            checked += checksum is not None
            if not _is_record(record):
                raise RunError(f"{self.path}: damaged: {where} is not a record of an epoch or run")
            records.append(record)
        if 0 < checked < len(records):
            raise RunError(
                f"{self.path}: damaged: {len(records) - checked} lines have no checksum; restore the file"
            )
        epochs = [record["epoch"] for record in records if record["kind"] == "epoch"]
        if any(b <= a for a, b in pairwise(epochs)):
            raise RunError(
                f"{self.path}: damaged: epochs {epochs!s:.200} are not in order; restore the file, or start "
                "a new run"
            )
        return records

    def read_epochs(self) -> list[dict[str, Any]]:
        """The records of complete epochs, in order."""
        return [record for record in self.read() if record["kind"] == "epoch"]

    def first_epochs(self, epochs: int) -> list[dict[str, Any]]:
        """The records of the first `epochs` epochs. Raises RunError if some are missing."""
        kept = [record for record in self.read_epochs() if record["epoch"] <= epochs]
        missing = sorted(set(range(1, epochs + 1)) - {record["epoch"] for record in kept})
        if missing:
            raise RunError(
                f"{self.path}: {len(missing)} epochs between {missing[0]} and {missing[-1]} are missing; "
                "restore the file, or start a new run"
            )
        return kept

    def rewrite(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Replace all records."""
        atomic_write_text(self.path, "".join(map(_line, records)))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({**record, _CHECKSUM: _checksum(record)}) + "\n"


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether a line has the fields that curves, comparisons and resumed runs need, within their ranges."""
    if record.get("kind") == "final":
        return True
    points, peak = record.get("loss_curve"), record.get("peak_memory")
    return (
        record.get("kind") in ("epoch", "partial")
        and is_count(record.get("epoch"), 1)
        and is_count(record.get("step"), 1)
        and is_number(record.get("loss"))
        and is_number(record.get("seconds"), 0)
        and (peak is None or is_count(peak))
        and isinstance(record.get("improved"), bool)
        and isinstance(points, list)
        and all(isinstance(p, list) and len(p) == 2 and is_count(p[0]) and is_number(p[1]) for p in points)
        and is_scores(record.get("valid"))
    )
