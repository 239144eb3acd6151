"""The step that trains for a few epochs on the GPU and compares them with the CPU and without CUDA graphs."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.step import Outcome, Settings, run_logged, tail

# Largest relative difference of losses: two devices draw different random numbers.
LOSS_TOLERANCE = 0.05


def train_once(
    device: str, epochs: int, seconds: float, **more: object
) -> tuple[int | None, str, list[dict[str, Any]]]:
    """Trains on the built-in set; returns the exit code, the output and the epochs of metrics.jsonl."""
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        options = {"device": device, "epochs": epochs, "output": folder, "name": "run", "tensorboard": "off"}
        options |= {"lr": 1e-3, "lr_decay": "none", "warmup_steps": 0}  # the same for any number of epochs
        options |= more
        command = [sys.executable, "-m", "recgrela.train"]
        command += [f"--train.{name}={value}" for name, value in options.items()]
        code, output = run_logged(command, seconds)
        metrics = Path(folder, "run", "metrics.jsonl")
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        records = [json.loads(line) for line in lines]
        return code, output, [record for record in records if record["kind"] == "epoch"]


def judge(records: list[dict[str, Any]], others: dict[str, list[dict[str, Any]]]) -> tuple[str, str]:
    """Status and summary of the epochs on the GPU, compared with other ways to train, by name."""
    losses = [record["loss"] for record in records]
    rate = max(record["targets_per_second"] for record in records)
    summary = f"loss {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} epochs, {rate:,.0f} targets/s"
    passed = all(map(math.isfinite, losses)) and (len(losses) == 1 or losses[-1] < losses[0])
    for name, other in others.items():
        epoch = min(len(other), len(losses)) - 1  # the last epoch of both
        away = abs(losses[epoch] - other[epoch]["loss"]) / other[epoch]["loss"]
        summary += f"; epoch {epoch + 1} {name} {other[epoch]['loss']:.4f} ({100 * away:.1f}% away), "
        summary += f"{max(record['targets_per_second'] for record in other):,.0f} targets/s"
        passed = passed and away <= LOSS_TOLERANCE
    return ("passed" if passed else "failed"), summary


def training(settings: Settings) -> Outcome:
    """Trains on the GPU and, if there is time, without CUDA graphs and for one epoch on the CPU."""
    epochs = 2 if settings.quick else 4
    deadline = time.monotonic() + settings.limit - 10
    code, output, records = train_once("cuda", epochs, deadline - time.monotonic())
    details: dict[str, Any] = {"exit_code": code, "epochs": records, "tail": tail(output)}
    if code != 0 or not records:
        why = "out of time" if code is None else f"exit code {code}"
        return "failed", f"recgrela.train: {why}: {tail(output, 1)}", details
    settings.save(details)
    others: dict[str, list[dict[str, Any]]] = {}
    ways: dict[str, tuple[str, int, dict[str, object]]] = {
        "without CUDA graphs": ("cuda", epochs, {"cuda_graphs": "false"}),
        "on the CPU": ("cpu", 1, {}),
    }
    for name, (device, number, more) in ways.items():
        if deadline - time.monotonic() < 20:
            break
        code, output, found = train_once(device, number, deadline - time.monotonic(), **more)
        details[name] = {"exit_code": code, "epochs": found, "tail": tail(output)}
        settings.save(details)
        if code:
            return "failed", f"recgrela.train {name}: exit code {code}: {tail(output, 1)}", details
        if found:
            others[name] = found
    return (*judge(records, others), details)
