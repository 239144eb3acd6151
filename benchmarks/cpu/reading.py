"""Time and peak memory of reading, filtering and packing a synthetic set in each format.

python -m benchmarks.cpu.reading [--events 4000000] [--formats csv parquet ...] [--folder FOLDER]

Events have the sizes of MovieLens-32M in proportion: 200,000 users and 44,000 items for 32 million events,
with skewed popularity. Each format is read in a process of its own, whose time, CPU time (of all threads) and
peak resident memory are reported; files are written to a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

BLOCK = 1 << 20  # events
USERS, ITEMS, EVENTS = 200_000, 44_000, 32_000_000
COLUMNS = ("user_id", "item_id", "rating", "timestamp")


def blocks(events: int) -> Iterator[pa.Table]:
    """The events, in no order of users."""
    share = events / EVENTS
    users, items = max(int(USERS * share), 10), max(int(ITEMS * share**0.5), 10)
    random = np.random.default_rng(0)
    for first in range(0, events, BLOCK):
        size = min(BLOCK, events - first)
        user = (users * random.random(size) ** 1.5).astype(np.int64)
        item = (items * random.random(size) ** 3).astype(np.int64)
        rating = random.integers(1, 11, size) / 2
        when = random.integers(900_000_000, 1_700_000_000, size)
        yield pa.table([user + 1, item + 1, rating, when], names=list(COLUMNS))


def _delimited(events: int, path: Path, separator: str, header: str) -> None:
    options = csv.WriteOptions(include_header=False, delimiter=separator)
    with path.open("wb") as file:
        file.write(header.encode())
        for block in blocks(events):
            csv.write_csv(block, file, options)


def write_inter(events: int, folder: Path) -> Path:
    names = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    _delimited(events, folder / "x.inter", "\t", names)
    return folder / "x.inter"


def write_csv(events: int, folder: Path) -> Path:
    _delimited(events, folder / "x.csv", ",", ",".join(COLUMNS) + "\n")
    return folder / "x.csv"


def write_dat(events: int, folder: Path) -> Path:
    """MovieLens' ratings.dat."""
    _delimited(events, folder / "x.tsv", "\t", "")
    with (folder / "x.tsv").open("rb") as plain, (folder / "ratings.dat").open("wb") as file:
        while part := plain.read(1 << 24):
            file.write(part.replace(b"\t", b"::"))
    (folder / "x.tsv").unlink()
    return folder / "ratings.dat"


def write_gzip(events: int, folder: Path) -> Path:
    with write_csv(events, folder).open("rb") as plain, gzip.open(folder / "x.csv.gz", "wb", 1) as file:
        shutil.copyfileobj(plain, file, 1 << 24)
    (folder / "x.csv").unlink()
    return folder / "x.csv.gz"


def write_parquet(events: int, folder: Path) -> Path:
    made = blocks(events)
    first = next(made)
    with parquet.ParquetWriter(folder / "x.parquet", first.schema) as writer:
        for block in (first, *made):
            writer.write_table(block)
    return folder / "x.parquet"


def write_text_parquet(events: int, folder: Path) -> Path:
    """Parquet with ids as texts."""
    made = (table.cast(_texts(table.schema)) for table in blocks(events))
    first = next(made)
    with parquet.ParquetWriter(folder / "x.parquet", first.schema) as writer:
        for block in (first, *made):
            writer.write_table(block)
    return folder / "x.parquet"


def _texts(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(f.name, pa.string() if f.name.endswith("_id") else f.type) for f in schema])


def write_parts(events: int, folder: Path) -> Path:
    """A folder of CSV files."""
    (folder / "parts").mkdir()
    for number, block in enumerate(blocks(events)):
        csv.write_csv(block, folder / "parts" / f"part-{number:05}.csv")
    return folder / "parts"


def write_json(events: int, folder: Path) -> Path:
    with (folder / "x.jsonl").open("w") as file:
        for block in blocks(events):
            columns = (block[name].to_pylist() for name in COLUMNS)
            file.writelines(
                f'{{"user_id": "{u}", "item_id": "{i}", "rating": {r}, "timestamp": {t}}}\n'
                for u, i, r, t in zip(*columns, strict=True)
            )
    return folder / "x.jsonl"


FORMATS: dict[str, Callable[[int, Path], Path]] = {
    "inter": write_inter,
    "dat": write_dat,
    "csv": write_csv,
    "csv.gz": write_gzip,
    "parquet": write_parquet,
    "parquet of texts": write_text_parquet,
    "parts": write_parts,
    "json lines": write_json,
}


def read(path: Path) -> dict[str, float]:
    """Reads a set in this process."""
    import resource

    from recgrela.data import DataConfig, load

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, busy = time.perf_counter(), time.process_time()
    data = load(DataConfig(path=str(path)))
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = {"peak_gb": peak / 1e6, "before_gb": before / 1e6}
    return {"events": data.n_events, "seconds": seconds, "cpu_seconds": busy, **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--folder", help="where to write; by default the system's temporary folder")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read is not None:
        print(json.dumps(read(args.read)))
        return
    for name in args.formats:
        with tempfile.TemporaryDirectory(prefix="recgrela-", dir=args.folder) as folder:
            path = FORMATS[name](args.events, Path(folder))
            command = [sys.executable, "-m", "benchmarks.cpu.reading", "--read", str(path)]
            used = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        peak, before = used["peak_gb"], used["before_gb"]
        print(
            f"{name}: {used['events']:,} of {args.events:,} events in {used['seconds']:.1f} s, CPU time "
            f"{used['cpu_seconds']:.1f} s, peak memory {peak:.2f} GB, {before:.2f} of them before",
            flush=True,
        )


if __name__ == "__main__":
    main()
