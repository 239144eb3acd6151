"""metrics.jsonl: a record for each epoch of a run and one for its final result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recgrela.system.errors import RunError
from recgrela.system.files import append_text, atomic_write_text


@dataclass(frozen=True)
class MetricsFile:
    """A file of JSON records, a line each."""

    path: Path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record. Raises RunError if the file cannot be written."""
        append_text(self.path, json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All records. A last line that a killed process left incomplete is dropped.

        Raises:
            RunError: another line is damaged.
        """
        if not self.path.is_file():
            return []
        lines = self.path.read_bytes().splitlines()
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line.decode("utf-8"))
            except ValueError as error:
                if number < len(lines):
                    raise RunError(f"{self.path}: line {number} is damaged: {error}") from error
                break
            if not _is_record(record):
                raise RunError(f"{self.path}: line {number} is damaged: not a record of an epoch or run")
            records.append(record)
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
        atomic_write_text(self.path, "".join(json.dumps(record) + "\n" for record in records))


def _is_record(record: object) -> bool:
    """Whether a line has the fields that the curves and a resumed run need."""
    if not isinstance(record, dict) or record.get("kind") not in ("epoch", "partial", "final"):
        return False
    needed = {"epoch", "step", "loss", "seconds", "improved", "valid", "loss_curve"}
    return record["kind"] == "final" or (needed <= record.keys() and isinstance(record["epoch"], int))
