"""Rates and sizes of the stores: import, append, load, save; bytes of an event and of a state.

python -m benchmarks.cpu.store [--events 200000 --users 20000 --batch 256 --state 20000 --rounds 10]

SQLite is measured beside what bounds it: the same rows inserted by the sqlite3 module into a table of equal
columns, and a write of 100 bytes with fsync. Redis is measured if redis-server is installed, with appendonly
yes and appendfsync always. All files are in a temporary folder; TMPDIR names another disk.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.timing import arguments, medians, record
from python_tests.support.redis_server import RedisServer
from recgrela.store import Event, Store, open_store
from recgrela.store.sqlite_file import SCHEMA

MODEL = "5e" * 32


def events_table(events: int, users: int, order: str, with_ids: bool) -> pa.Table:
    """Events of random users with items of a long-tailed distribution, ordered by time or by user."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, users, events), rng.zipf(1.2, events) % 100_000
    seconds = 1.7e9 + np.sort(rng.random(events)) * 1e7
    rows = np.argsort(user, kind="stable") if order == "user" else np.arange(events)
    columns = {"user": user[rows], "item": item[rows], "time": seconds[rows]}
    if with_ids:
        columns["id"] = np.array([f"{i:016x}" for i in rows])
    return pa.table(columns)


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def plain_insert(path: Path, table: pa.Table) -> float:
    """Seconds that the sqlite3 module takes for the rows of a table, as numbers, in one transaction."""
    numbers = {name: np.unique(table[name].to_numpy(), return_inverse=True)[1] for name in ("user", "item")}
    rows = list(
        zip(
            numbers["user"].tolist(),
            table["time"].to_pylist(),
            range(table.num_rows),
            numbers["item"].tolist(),
            range(table.num_rows),
            strict=True,
        )
    )
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(SCHEMA["events"])

    def insert() -> None:
        with db:
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)

    taken = seconds_of(insert)
    db.close()
    return taken


def imports(folder: Path, args: Any) -> list[dict[str, Any]]:
    """Rates of an import into SQLite beside a plain insert, and the bytes of an event."""
    results = []
    for order in ("user", "time"):
        for with_ids in (False, True):
            table = events_table(args.events, args.users, order, with_ids)
            path = folder / f"{order} {with_ids}.db"
            with open_store(path) as store:
                taken = seconds_of(lambda: store.append_table(table))  # noqa: B023
            plain = plain_insert(folder / f"plain {order} {with_ids}.db", table)
            results.append(
                {
                    "what": f"import ordered by {order}, {'ids of 16 characters' if with_ids else 'no ids'}",
                    "events_per_second": round(args.events / taken),
                    "plain_insert_events_per_second": round(args.events / plain),
                    "share_of_plain_insert": round(plain / taken, 2),
                    "bytes_per_event": round(path.stat().st_size / args.events, 1),
                }
            )
    return results


def calls(store: Store, folder: Path, args: Any) -> dict[str, Callable[[], object]]:
    """Calls on a store whose users have histories and states."""
    users = [str(i) for i in range(args.batch)]
    state, ticks = os.urandom(args.state), count()

    def append(size: int) -> None:
        now = 1.8e9 + next(ticks)
        users = (str(i * 7919 % args.users) for i in range(size))
        store.append([Event(user, str(i % 3000), now, f"{now} {i}") for i, user in enumerate(users)])

    def step() -> None:
        """What a server does for a batch: append an event a user, load, save the new states."""
        now = 1.8e9 + next(ticks)
        store.append([Event(user, "1", now, str(now)) for user in users])
        save(store.load(MODEL, users))

    def save(logs: list) -> None:
        store.save(MODEL, [(log.user, log.revision, log.folded + len(log.pending), state) for log in logs])

    save(store.load(MODEL, users))
    return {
        "append 1 event": lambda: append(1),
        "append 1,000 events": lambda: append(1000),
        f"load {args.batch} states": lambda: store.load(MODEL, users),
        f"append, load and save {args.batch} states": step,
    }


def flushed_write(folder: Path) -> Callable[[], None]:
    """A write of 100 bytes to a file, with fsync."""
    file = (folder / "flushed").open("wb", buffering=0)

    def write() -> None:
        file.write(b"x" * 100)
        os.fsync(file.fileno())

    return write


def state_bytes(store: Store, size: Callable[[], int], args: Any) -> float:
    """Bytes by which a state makes the store larger."""
    users = [str(i) for i in range(args.batch, args.batch + 1000)]
    logs, before = [log for log in store.load(MODEL, users) if log.pending], size()
    store.save(MODEL, [(log.user, log.revision, len(log.pending), os.urandom(args.state)) for log in logs])
    return (size() - before) / len(logs)


def measure(stack: ExitStack, folder: Path, args: Any) -> list[dict[str, Any]]:
    """Times of calls on each store, taking turns, and the bytes of events and states."""
    table = events_table(args.events, args.users, "user", with_ids=False)
    path = folder / "calls.db"
    stores = {"SQLite": stack.enter_context(open_store(path))}
    # An open file has its last pages in the write-ahead log; a second connection's checkpoint moves them.
    sizes: dict[str, Callable[[], int]] = {"SQLite": lambda: checkpointed(path)}
    if shutil.which("redis-server"):
        (folder / "redis").mkdir()
        server = RedisServer(folder / "redis")
        stack.callback(server.stop)
        stores["Redis"] = stack.enter_context(open_store(server.url))
        sizes["Redis"] = lambda: stores["Redis"]._client.info("memory")["used_memory"]
    results = []
    for name, store in stores.items():
        empty = sizes[name]()
        taken = seconds_of(lambda: store.append_table(table))  # noqa: B023
        per_event = (sizes[name]() - empty) / table.num_rows
        results.append(
            {
                "what": f"{name}: import of {table.num_rows:,} events ordered by user, no ids",
                "events_per_second": round(table.num_rows / taken),
                "bytes_per_event": round(per_event, 1),
                "bytes_per_state": round(state_bytes(store, sizes[name], args)),
            }
        )
    variants = {
        f"{n}: {what}": call for n, s in stores.items() for what, call in calls(s, folder, args).items()
    }
    times = medians(variants | {"write of 100 bytes with fsync": flushed_write(folder)}, args.rounds)
    return results + [{"what": what, "milliseconds": round(1e3 * t, 3)} for what, t in times.items()]


def checkpointed(path: Path) -> int:
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path.stat().st_size


def main() -> None:
    args = arguments(__doc__, events=200_000, users=20_000, batch=256, state=20_000, rounds=10).parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        results = imports(folder, args) + measure(stack, folder, args)
    for result in results:
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result.items()))
    record("store", vars(args), results)


if __name__ == "__main__":
    main()
