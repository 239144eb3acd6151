"""Faults of the SQLite store's file: refused with one line that names it, and never changed."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from recgrela.store import Event, SQLiteStore, UserLog, open_store
from recgrela.system.errors import RunError

MODEL = "5e" * 32
USERS = [f"user {i}" for i in range(8)]


def filled(path: Path) -> Path:
    """A closed store with states, ids and some pages of events."""
    with open_store(path) as store:
        store.append(
            [
                Event(user, f"item {i % 50}", float(i), f"id {i}" if i % 3 else None)
                for i in range(60)
                for user in USERS
            ]
        )
        store.save(MODEL, [(user, 0, 55, user.encode() * 500) for user in USERS])
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(path: Path, message: str) -> None:
    """Opening fails with one line that names the file, and leaves it as it is."""
    before = digest(path)
    with pytest.raises(RunError, match=message) as caught:
        open_store(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    assert digest(path) == before


def foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE events (user)")
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("user,item,time\n" * 20),
        foreign,
        lambda path: filled(path).write_bytes(filled(path).read_bytes()[:99]),
        lambda path: path.write_bytes(b"\xff" + filled(path).read_bytes()[1:]),
    ],
    ids=["empty", "text", "another database", "cut in the header", "damaged header"],
)
def test_files_that_are_no_store(tmp_path: Path, write: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    write(path)
    refused(
        path,
        "is not a store of recgrela, or its beginning is damaged; nothing was changed: give another path",
    )


def test_a_store_of_a_newer_format(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.db")
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    refused(path, "has format 2, and this version of recgrela reads format 1; nothing was changed: upgrade")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_cut_store(tmp_path: Path, share: float) -> None:
    path = filled(tmp_path / "store.db")
    os.truncate(path, int(share * path.stat().st_size))
    refused(path, r"is damaged \(.*\); nothing was changed: restore a copy of the file")


def test_changed_tables(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.db")
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE users ADD COLUMN more")
    db.close()
    refused(path, r"is damaged \(its tables are not those of a store\)")


def contents(path: Path) -> tuple[list, list, list[str]]:
    """Everything that a store returns."""
    with open_store(path) as store:
        logs = store.load(MODEL, USERS)
        whole = store.load("another model", USERS)
        return [logs, whole], [store.history(user) for user in USERS], sorted(store.users())


def test_no_flipped_byte_is_returned(tmp_path: Path) -> None:
    """After a byte of the file changed, everything is as before, an error, or a state computed again."""
    path = filled(tmp_path / "store.db")
    good, rng = path.read_bytes(), random.Random(3)
    expected = contents(path)
    rebuilt = [UserLog(log.user, log.revision, 0, None, log.pending) for log in expected[0][1]]
    errors = dropped = 0
    # The header and the beginnings of pages matter more often than their middle.
    places = [*rng.sample(range(100), 30), *(rng.randrange(len(good)) for _ in range(90))]
    places += [page + rng.randrange(12) for page in range(0, len(good), 4096)]
    for place in places:
        changed = bytearray(good)
        changed[place] ^= 1 << rng.randrange(8)
        for name in ("store.db-wal", "store.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        path.write_bytes(changed)
        try:
            [logs, whole], histories, users = contents(path)
        except RunError as error:
            assert str(path) in str(error)
            errors += 1
            continue
        assert [whole, histories, users] == [expected[0][1], *expected[1:]], place
        for log, good_log, rebuilt_log in zip(logs, expected[0][0], rebuilt, strict=True):
            assert log in (good_log, rebuilt_log), place
            dropped += log != good_log
    assert errors > 30 and dropped > 3


def change(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    assert db.execute(statement).rowcount > 0
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET item = 3 WHERE arrival = 58",
        "UPDATE events SET item = 'text' WHERE arrival = 58",
        "UPDATE events SET time = 58.5 WHERE arrival = 58",
        "UPDATE events SET time = 'text' WHERE arrival = 58",
        "UPDATE items SET name = 'another' WHERE name = 'item 8'",
        "UPDATE items SET name = x'ff' WHERE name = 'item 8'",
        "DELETE FROM events WHERE user = 1 AND arrival < 58",
        "UPDATE users SET count = 59",
        "UPDATE users SET revision = 1",
        "UPDATE users SET name = 'user x' WHERE number = 1",
        "UPDATE users SET last = 'text' WHERE number = 1",
    ],
)
def test_changed_rows_are_errors(tmp_path: Path, statement: str) -> None:
    path = filled(tmp_path / "store.db")
    change(path, statement)
    with (
        open_store(path) as store,
        pytest.raises(RunError, match=r"is damaged \(.*\); nothing was changed: restore"),
    ):
        store.load("another model", ["user x"] if "user x" in statement else USERS)


def test_changed_ids_are_errors(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.db")
    change(path, "UPDATE ids SET id = 'x' WHERE user = 1 AND id = 'id 1'")
    with (
        open_store(path) as store,
        pytest.raises(RunError, match="an id of user 'user 0' has a wrong checksum"),
    ):
        store.history("user 0")


def test_a_damaged_state_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path / "store.db")
    change(path, "UPDATE states SET state = x'00' WHERE user = 1")
    change(path, "UPDATE states SET folded = 54 WHERE user = 2")
    change(path, "UPDATE states SET crc = 'text' WHERE user = 3")
    with open_store(path) as store:
        logs = store.load(MODEL, USERS)
        assert [log.folded for log in logs] == [0, 0, 0, 55, 55, 55, 55, 55]
        assert [len(log.pending) for log in logs] == [60, 60, 60, 5, 5, 5, 5, 5]
        messages = [record.getMessage() for record in caplog.records]
        assert [
            f"{path}: the state of user {user!r} is damaged" in "".join(messages) for user in USERS[:4]
        ] == [
            *[True] * 3,
            False,
        ]
        store.save(MODEL, [(user, 0, 55, b"again") for user in USERS])
        assert [log.state for log in store.load(MODEL, USERS[:4])] == [b"again"] * 3 + [b"user 3" * 500]


def test_a_held_store(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.db")
    holder = sqlite3.connect(path, isolation_level=None)
    with SQLiteStore(path, timeout=0.05) as store:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            RunError, match=r"another process has held it for 0\.05 s .*; nothing was stored: try again"
        ):
            store.append([Event("user 0", "a", 100.0, "new")])
        assert len(store.history("user 0")) == 60  # reading does not wait
        holder.execute("ROLLBACK")
        assert store.append([Event("user 0", "a", 100.0, "new")]) == [True]
    holder.close()


def test_a_thread_that_writes_for_long(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store.db", timeout=0.05) as store:
        began, done = threading.Event(), threading.Event()

        def hold() -> None:
            with store._file.writing(durable=True):
                began.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        began.wait()
        with pytest.raises(RunError, match=r"another thread has been writing for 0\.05 s; try again"):
            store.append([Event("u", "a", 0.0, None)])
        done.set()
        thread.join()
        assert store.append([Event("u", "a", 0.0, None)]) == [True]


def test_a_full_disk(tmp_path: Path) -> None:
    """A batch that does not fit is not stored at all, and the store works again once there is space."""
    path = filled(tmp_path / "store.db")
    big = [Event("big", "x" * 1000 + str(i), float(i), f"big {i}") for i in range(2000)]
    with open_store(path) as store:
        store.append([Event("u", "a", 0.0, "1")])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            for _ in range(2):
                with pytest.raises(
                    RunError, match=r"(disk I/O error|no space left on the disk).*; nothing was stored"
                ):
                    store.append(big)
            assert store.append([Event("u", "b", 1.0, "2")]) == [True]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert store.load(MODEL, ["big"]) == [UserLog("big", 0, 0, None, [])]
        assert store.append(big) == [True] * len(big)
    with open_store(path) as store:
        assert [event.item for event in store.history("u")] == ["a", "b"]
        assert len(store.history("big")) == len(big)


def test_a_database_at_its_limit(tmp_path: Path) -> None:
    """SQLite's own report of a full disk, which rolls the transaction back by itself."""
    with open_store(filled(tmp_path / "store.db")) as store:
        with store._file.reading() as db:
            limit = db.execute("PRAGMA page_count").fetchone()[0]
        store._file._free[-1].execute(f"PRAGMA max_page_count = {limit + 4}")
        with pytest.raises(RunError, match="no space left on the disk; nothing was stored: free some"):
            store.append([Event("big", "x" * 1000 + str(i), float(i), None) for i in range(100)])
        assert store.append([Event("user 0", "a", 100.0, None)]) == [True]
        assert "big" not in set(store.users())


def as_nobody(use: Callable[[], object]) -> str:
    """The message of the RunError of a call in a child process that may not write to files of others."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        try:
            use()
            os.write(writer, b"no error")
        except RunError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = filled(tmp_path / "folder" / "store.db") if (tmp_path / "folder").mkdir() is None else None
    path.chmod(0o444)
    path.parent.chmod(0o555)
    parents = [
        parent for parent in path.parents if parent.stat().st_uid == os.geteuid() and parent != Path("/")
    ]
    modes = [(parent, parent.stat().st_mode) for parent in parents[1:]]
    try:
        for parent, mode in modes:
            parent.chmod(mode | 0o111)
        before = digest(path)
        assert "writable" in as_nobody(lambda: open_store(path))
        message = as_nobody(lambda: open_store(path.with_name("new.db")))
        assert (
            f"cannot create the store {path.with_name('new.db')}" in message
            and "must exist and be writable" in message
        )
        assert digest(path) == before
        assert [file.name for file in path.parent.iterdir()] == ["store.db"]
    finally:
        for parent, mode in modes:
            parent.chmod(mode)
        path.parent.chmod(0o755)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"cannot open the store {tmp_path}: Is a directory"):
        open_store(tmp_path)
    with pytest.raises(
        RunError, match=f"cannot create .*: {tmp_path}/gone is not a folder; its folder must exist"
    ):
        open_store(tmp_path / "gone" / "store.db")


def test_a_replaced_file(tmp_path: Path) -> None:
    """Events would be stored in the old file, which has no name any more."""
    path = filled(tmp_path / "store.db")
    with open_store(path) as store:
        copy = tmp_path / "copy"
        copy.write_bytes(path.read_bytes())
        os.replace(copy, path)
        with pytest.raises(
            RunError, match="was removed or replaced while it was open; nothing was stored; restart"
        ):
            store.append([Event("u", "a", 0.0, None)])
        path.unlink()
        with pytest.raises(RunError, match="was removed or replaced while it was open"):
            store.append([Event("u", "a", 0.0, None)])


def test_a_backup_of_an_open_store(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as store:
        store.append([Event("u", "a", 0.0, "1")])
        source, target = sqlite3.connect(tmp_path / "store.db"), sqlite3.connect(tmp_path / "copy.db")
        source.backup(target)
        source.close()
        target.close()
    with open_store(tmp_path / "copy.db") as copy:
        assert copy.history("u") == [Event("u", "a", 0.0, "1")]


def test_creation_by_several_threads(tmp_path: Path) -> None:
    stores: list[SQLiteStore] = []
    threads = [
        threading.Thread(target=lambda: stores.append(open_store(tmp_path / "store.db"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, store in enumerate(stores):
        assert store.append([Event("u", str(i), float(i), None)]) == [True]
    assert [len(store.history("u")) for store in stores] == [6] * 6
    for store in stores:
        store.close()
    assert [file.name for file in tmp_path.iterdir()] == ["store.db"]
