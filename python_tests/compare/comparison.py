"""A comparison small enough for tests: two sizes of RecGRELA, two seeds."""

from __future__ import annotations

import contextlib
import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from python_tests.support.runs import DATA, PLAIN, TRAIN, run_train
from recgrela.runs.folder import RunFolder

POPEN = subprocess.Popen
LABELS, SEEDS = ("RecGRELA", "narrow"), (1, 2)
SIZES = [f"--model.{label}.{key}" for label in LABELS for key in ("num_layers=2", "num_heads=2")]
SIZES += ["--model.RecGRELA.hidden_size=16", "--model.narrow.hidden_size=4"]
MODELS = ["--models", "RecGRELA", "narrow=RecGRELA"]
SHARED = [*DATA, *PLAIN, *TRAIN, "--train.epochs=2"]
REQUESTED = [*MODELS, *SIZES, *SHARED, "--train.lr=1e-2", "--seeds", "1", "2"]


class InProcess:
    """A training process of `Runner` that trains in this process, which has imported PyTorch already."""

    def __init__(self, command: list[str], stderr: IO[bytes], **options: object) -> None:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.code = run_train(*command[3:])
        stderr.write(errors.getvalue().encode())

    def wait(self) -> int:
        return self.code


def start(command: list[str], **options: Any) -> Any:
    """`subprocess.Popen`, but a valid training command runs in this process."""
    is_training = command[:3] == [sys.executable, "-m", "recgrela.train"]
    return (InProcess if is_training and "--train.nothing" not in command else POPEN)(command, **options)


def folders(out: Path) -> dict[tuple[str, int], RunFolder]:
    return {(label, s): RunFolder.open(out / "runs" / label / str(s)) for label in LABELS for s in SEEDS}


def files(out: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(out.rglob("*")) if p.is_file()}


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "table.csv").open(newline="") as file:
        return {line["label"]: line for line in csv.DictReader(file)}
