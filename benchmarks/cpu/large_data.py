"""Memory and time of training on packed interactions of several sizes, the last one under a limit.

python -m benchmarks.cpu.large_data [--events 1000000 8000000 32000000] [--steps 40] [--limit_mib N]

Each set is written block by block and trained on in processes of its own. The numbers are the largest private
memory of a process (RssAnon, and shared memory: RssShmem), which excludes pages of files that the kernel can
drop. A process with --limit_mib may not have more private memory than that (RLIMIT_DATA).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

EVENTS_PER_USER, ITEMS, BLOCK_USERS = 32, 50_000, 20_000
MIB = 1 << 20


class Peak(threading.Thread):
    """The largest private memory of this process, sampled every 10 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib = 0.0
        self.start()

    def run(self) -> None:
        while True:
            self.mib = max(self.mib, private_mib())
            time.sleep(0.01)


def private_mib() -> float:
    """RssAnon and RssShmem of this process."""
    with open("/proc/self/status") as file:
        lines = [line.split() for line in file if line.startswith(("RssAnon", "RssShmem"))]
    return sum(int(line[1]) for line in lines) / 1024


def write(folder: Path, events: int) -> dict[str, float]:
    """Writes a packed set of random items of geometrically distributed popularity."""
    import pyarrow as pa

    from recgrela.data import PackedWriter

    peak, began, random = Peak(), time.perf_counter(), np.random.default_rng(0)
    users = events // EVENTS_PER_USER
    with PackedWriter(folder) as writer:
        for first in range(0, users, BLOCK_USERS):
            rows = np.arange(first, min(first + BLOCK_USERS, users))
            counts = random.integers(5, 2 * EVENTS_PER_USER - 4, rows.size)
            items = random.geometric(2e-4, counts.sum()) % (ITEMS - 1) + 1
            writer.append(pa.array(rows).cast(pa.string()), counts, items.astype(np.int32))
        limits = {
            "min_user_events": 5,
            "max_user_events": None,
            "min_item_events": 5,
            "max_item_events": None,
        }
        description = {
            "source": "large_data",
            "format": "synthetic",
            "rules": {"missing": [], "min_rating": None, "duplicates": "keep"},
            "filter": limits,
            "order": "time",
            "split": {"split": "leave_one_out"},
            "users": users + 1,
            "items": ITEMS,
            "events": events,
            "events_read": events,
        }
        writer.finish(["[PAD]", *map(str, range(1, ITEMS))], None, "0" * 64, description)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "users": users,
        "seconds": time.perf_counter() - began,
        "disk_mib": size / MIB,
        "peak_mib": peak.mib,
    }


def train(folder: Path, steps: int, limit_mib: int | None) -> dict[str, float]:
    """Opens a training run, takes steps, and evaluates 1,000 users."""
    import torch

    from recgrela.models import CONFIGS
    from recgrela.settings.run import read_run
    from recgrela.training.session import open_session

    torch.set_num_threads(1)
    if limit_mib is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_mib * MIB, limit_mib * MIB))
    peak, before = Peak(), private_mib()
    options = {"data.path": folder, "data.max_len": 50, "data.eval_users": 1000, "train.batch_size": 2048}
    options |= {"train.device": "cpu", "train.threads": 1, "model.hidden_size": 32, "model.num_layers": 1}
    began = time.perf_counter()
    session = open_session(
        read_run([text for key, v in options.items() for text in (f"--{key}", str(v))], CONFIGS)
    )
    opened = time.perf_counter() - began
    session.model.train()
    waits, batches = [], session.batches.epoch(0)
    began = time.perf_counter()
    for _ in range(steps):
        asked = time.thread_time()
        batch = next(batches)
        waits.append(time.thread_time() - asked)
        session.take_step(batch, 1e-3)
    seconds = (time.perf_counter() - began) / steps
    users = session.splits["valid"].num_users
    session.ranker(session.splits["valid"])
    return {
        "events": session.data.n_events,
        "opened_s": opened,
        "batch_ms": 1e3 * statistics.median(waits),
        "step_ms": 1e3 * seconds,
        "evaluated": users,
        "before_mib": before,
        "peak_mib": peak.mib,
    }


def in_process(*argv: object) -> dict[str, float]:
    """Runs this module in another process and returns what it prints."""
    command = [sys.executable, "-m", "benchmarks.cpu.large_data", *map(str, argv)]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 8_000_000, 32_000_000])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--limit_mib", type=int, help="limit of the training process on the last set")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write is not None:
        print(json.dumps(write(args.write, args.events[0])))
        return
    if args.train is not None:
        print(json.dumps(train(args.train, args.steps, args.limit_mib)))
        return
    with tempfile.TemporaryDirectory(prefix="recgrela-") as folder:
        for events in args.events:
            path = Path(folder) / str(events)
            made = in_process("--write", path, "--events", events)
            is_last = events == args.events[-1]
            limit = ["--limit_mib", args.limit_mib] if is_last and args.limit_mib is not None else []
            used = in_process("--train", path, "--steps", args.steps, *limit)
            print(
                f"{used['events']:,} events of {made['users']:,} users, {made['disk_mib']:,.0f} MiB on disk",
                f"written in {made['seconds']:.0f} s with {made['peak_mib']:.0f} MiB",
                f"opened and checked in {used['opened_s']:.1f} s",
                f"CPU time of a batch {used['batch_ms']:.2f} ms, step of {used['step_ms']:.0f} ms",
                f"training with {used['peak_mib']:.0f} MiB, {used['before_mib']:.0f} of them before it"
                + (f", under a limit of {args.limit_mib} MiB" if limit else ""),
                sep="; ",
            )


if __name__ == "__main__":
    main()
