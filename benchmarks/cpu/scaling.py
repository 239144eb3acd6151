"""Training steps and evaluation in 1, 2 and 4 processes of this machine, and what they exchange.

python -m benchmarks.cpu.scaling [--rounds 3 --steps 30 --items 20000]

Each run is `recgrela.train` under torchrun, on synthetic data, with one thread in each process and the same
global batch. Runs take turns. The all-reduce of the gradients is timed alone in the same number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import arguments, record
from recgrela.parallel.launch import Launch
from recgrela.parallel.processes import join

WORLDS = (1, 2, 4)
DATA = ["--data.synthetic_users=3000", "--data.synthetic_events=150", "--data.min_item_events=0"]
TRAIN = ["--train.pieces=4", "--train.threads=1", "--train.device=cpu", "--train.tensorboard=off"]


def torchrun(world: int, module: str, *argv: str) -> str:
    """Runs a module in some processes and returns its output."""
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m", module]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.check_output([sys.executable, "-m", *command, *argv], text=True, env=environ)


def train(world: int, args: argparse.Namespace, output: Path, shard: bool) -> dict[str, float]:
    """Trains some steps and evaluates; milliseconds of a step, seconds of an evaluation, memory in MB."""
    name = f"{world}-{time.monotonic_ns()}"
    options = [f"--data.synthetic_items={args.items}", f"--train.max_steps={args.steps}", *DATA, *TRAIN]
    options += [
        f"--train.shard_items={str(shard).lower()}",
        f"--train.output={output}",
        f"--train.name={name}",
    ]
    torchrun(world, "recgrela.train", *options)
    lines = (output / name / "metrics.jsonl").read_text().splitlines()
    partial = next(entry for entry in map(json.loads, lines) if entry["kind"] == "partial")
    protocol = json.loads((output / name / "protocol.json").read_text())
    return {
        "items": protocol["data"]["items"],
        "loss": partial["loss"],
        "step_ms": 1e3 * partial["seconds"] / args.steps,
        "eval_s": partial["eval_seconds"],
        "peak_mb": partial["peak_memory"] / 1e6,
    }


def reduce_alone(numbers: int) -> None:
    """Prints the milliseconds of an all-reduce of so many float32 numbers; runs under torchrun."""
    torch.set_num_threads(1)
    with join(torch.device("cpu"), Launch.read()) as processes:
        gradients, times = torch.zeros(numbers), []
        for _ in range(20):
            processes.wait()
            began = time.perf_counter()
            processes.sum_(gradients)
            times.append(time.perf_counter() - began)
        if processes.is_first:
            print(json.dumps(1e3 * statistics.median(times)))


def main() -> None:
    parser = arguments(__doc__, rounds=3, steps=30, items=20_000)
    parser.add_argument("--reduce", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reduce is not None:
        reduce_alone(args.reduce)
        return
    variants = [(world, False) for world in WORLDS] + [(world, True) for world in WORLDS if world > 1]
    rounds: dict[tuple[int, bool], list[dict[str, float]]] = {variant: [] for variant in variants}
    with tempfile.TemporaryDirectory(prefix="recgrela-") as folder:
        for _ in range(args.rounds):
            for world, shard in variants:
                rounds[world, shard].append(train(world, args, Path(folder), shard))
    numbers = int(rounds[1, False][0]["items"]) * 64  # the item table has nearly all parameters
    results: list[dict[str, Any]] = []
    expected = rounds[1, False][0]["loss"]
    for (world, shard), runs in rounds.items():
        # Dropout differs between processes, so losses agree only roughly.
        if abs(runs[0]["loss"] - expected) > 0.02 * expected:
            raise SystemExit(f"{world} processes: loss {runs[0]['loss']}, expected about {expected}")
        row = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        alone = world > 1 and not shard
        reduce_ms = json.loads(torchrun(world, __spec__.name, f"--reduce={numbers}")) if alone else None
        results.append({"processes": world, "sharded_table": shard, **row, "all_reduce_ms": reduce_ms})
        print(json.dumps(results[-1]), flush=True)
    del args.reduce
    record("scaling", vars(args), results)


if __name__ == "__main__":
    main()
