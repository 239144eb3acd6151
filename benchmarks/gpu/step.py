"""Settings of a step of gpu_check, and commands with a time limit."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

Outcome = tuple[str, str, dict[str, Any]]  # status, summary, details


@dataclass(frozen=True)
class Settings:
    """Settings of one step.

    Attributes:
        out: folder of the report.
        limit: seconds that the step may take.
        quick: use smaller sizes.
        save: writes the details found so far.
    """

    out: Path
    limit: float = 60.0
    quick: bool = False
    save: Callable[[dict[str, Any]], None] = lambda details: None

    @property
    def logs(self) -> Path:
        return self.out / "logs"


def tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.splitlines()[-lines:])


def text_of(command: Sequence[str], seconds: float = 20.0) -> str:
    """The output of a command, or its error in brackets."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=seconds)
        return done.stdout.strip()
    except subprocess.CalledProcessError as error:
        return f"[exit code {error.returncode}: {tail(error.stderr, 3)}]"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"[{error}]"


def run_logged(
    command: Sequence[str], seconds: float, env: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """Runs a command and prints its output; returns the exit code (None: out of time) and the output."""
    print("+", " ".join(command), flush=True)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | (env or {})
        )
        try:
            code: int | None = process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            code = None
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        file.seek(0)
        lines = file.read().splitlines()
    output = "\n".join(lines)
    print(output, flush=True)
    return code, output
