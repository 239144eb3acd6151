"""A process that uses a store: python -m python_tests.support.store_worker JOB URL NUMBER."""

from __future__ import annotations

import subprocess
import sys

from python_tests.support.project import ROOT
from recgrela.store import Event, open_store

MODEL = "5e" * 32
USERS = ["u", "v"]
ROUNDS = 15


def items_of(state: bytes | None) -> list[str]:
    """A state of these tests is the items that it contains."""
    return state.decode().split(",") if state else []


def share(url: str, number: int) -> None:
    """Append events of its own and events that every process sends, in and out of order, and save states."""
    with open_store(url) as store:
        for i in range(ROUNDS):
            time = float(i if i % 5 else i - 3)
            own = [Event(user, f"{number}/{i}", time, f"{number}/{i}") for user in USERS]
            shared = [Event(user, f"shared/{i}", float(i), f"shared/{i}") for user in USERS]
            accepted = store.append([*own, *shared, Event("w", str(number), 0.0, None)])
            assert accepted[:2] == [True, True] and accepted[4]
            entries = []
            for log in store.load(MODEL, USERS):
                items = items_of(log.state) + log.pending
                assert len(items) == len(set(items)), f"an item of {log.user} occurs twice"
                assert f"{number}/{i}" in items and f"shared/{i}" in items
                entries.append((log.user, log.revision, len(items), ",".join(items).encode()))
            store.save(MODEL, entries)


def acknowledge(url: str, number: int) -> None:
    """Append events until killed, and print the number of each batch once it is stored."""
    with open_store(url) as store:
        i = 0
        while True:
            store.append([Event("u", f"{i}/{part}", float(i), f"{i}/{part}") for part in range(3)])
            store.save(MODEL, [("u", 0, 3 * (i + 1), str(i).encode() * 3000)])
            print(i, flush=True)
            i += 1


def spawn(job: str, url: str, number: int) -> subprocess.Popen[str]:
    """A process that runs a job."""
    command = [sys.executable, "-m", "python_tests.support.store_worker", job, url, str(number)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    {"share": share, "acknowledge": acknowledge}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
