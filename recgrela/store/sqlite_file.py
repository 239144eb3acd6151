"""The file of an SQLite store: creation, checks at opening, connections, transactions, readable errors."""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from recgrela.system.errors import DiskFull, RunError, one_line
from recgrela.system.files import flush_file

APPLICATION = 0x52474C41  # "RGLA", application_id in the header of the file
FORMAT = 1  # user_version in the header of the file
# Primary keys order the rows of `events` and `ids`, so that a user's events are adjacent on disk.
SCHEMA = {
    "users": "CREATE TABLE users (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
    " revision INTEGER NOT NULL, count INTEGER NOT NULL, last REAL NOT NULL, crc INTEGER NOT NULL)",
    "items": "CREATE TABLE items (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "events": "CREATE TABLE events (user INTEGER, time REAL, arrival INTEGER, item INTEGER NOT NULL,"
    " crc INTEGER NOT NULL, PRIMARY KEY (user, time, arrival)) WITHOUT ROWID",
    "events_by_item": "CREATE INDEX events_by_item ON events (user, item)",
    "ids": "CREATE TABLE ids (user INTEGER, id TEXT, arrival INTEGER NOT NULL, crc INTEGER NOT NULL,"
    " PRIMARY KEY (user, id)) WITHOUT ROWID",
    "models": "CREATE TABLE models (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "states": "CREATE TABLE states (model INTEGER, user INTEGER, revision INTEGER NOT NULL,"
    " folded INTEGER NOT NULL, crc INTEGER NOT NULL, state BLOB NOT NULL, PRIMARY KEY (model, user))",
}
# integrity_check also checks the order of rows and compares an index with its table. In the events a row that
# is out of order is missed by the count of the user, and the index only says which items a user has seen.
# States are not checked: each has a checksum, and reading all of them could take minutes.
CHECKS = {
    "users": "integrity_check",
    "items": "integrity_check",
    "events": "quick_check",
    "ids": "integrity_check",
}
MAGIC = b"SQLite format 3\0"
HEADER = 100  # bytes
CACHE = 16  # MiB of pages that a connection caches
# Errors of the caller, not of the file: a value that SQLite does not take, or that breaks a constraint.
BUGS = (sqlite3.ProgrammingError, sqlite3.IntegrityError, sqlite3.InterfaceError)
LARGEST_LOG = 64  # MiB; a longer write-ahead log is cut to this once its pages are in the file


class SQLiteFile:
    """The file and its connections. Threads may share it; each operation has a connection of its own.

    Args:
        path: the file; created if it does not exist.
        timeout: seconds to wait for another writer.

    Raises:
        RunError: the file cannot be opened, is not a store, is of a newer format, or is damaged.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._free: list[sqlite3.Connection] = []
        self._lock = threading.Lock()  # of _free and _closed
        self._writer = (
            threading.Lock()
        )  # threads of this process take turns in order, without polling the file
        self._closed = False
        self._process = os.getpid()
        if not path.exists():
            _create(path)
        _check_header(path)
        self._inode = _inode(path)
        with self.reading() as db:
            self._check(db)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that reads the file as of one point in time."""
        with self._connection() as db, _transaction(db, "BEGIN"):
            yield db

    @contextmanager
    def writing(self, durable: bool) -> Iterator[sqlite3.Connection]:
        """The only transaction that writes; it is committed if the block ends without an error.

        Args:
            durable: whether the transaction survives a power failure once it is committed.
        """
        if not self._writer.acquire(timeout=self._timeout):
            raise RunError(f"{self.path}: another thread has been writing for {self._timeout:g} s; try again")
        try:
            if _inode(self.path) != self._inode:
                raise RunError(
                    f"{self.path} was removed or replaced while it was open; nothing was stored; restart"
                )
            with self._connection() as db:
                # A later durable commit flushes the whole write-ahead log, including earlier commits.
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                with _transaction(db, "BEGIN IMMEDIATE"):
                    yield db
        finally:
            self._writer.release()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            while self._free:
                self._free.pop().close()

    def damage(self, detail: str) -> RunError:
        """The error for damaged content."""
        return RunError(
            f"{self.path} is damaged ({detail}); nothing was changed: restore a copy of the file "
            "(the events are enough, states are computed again)"
        )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses. Errors of SQLite, except bugs, become RunError."""
        if os.getpid() != self._process:
            raise RunError(
                f"{self.path} was opened before this process was forked; open it again in each process"
            )
        with self._lock:
            if self._closed:
                raise RunError(f"{self.path} is closed")
            db = self._free.pop() if self._free else None
        try:
            if db is None:
                db = self._connect()
            yield db
        except BaseException as error:
            if db is not None:
                db.close()  # its state is unknown, and connections are cheap
            if isinstance(error, sqlite3.Error) and not isinstance(error, BUGS):
                raise self._fault(error) from error
            raise
        with self._lock:
            if self._closed:
                db.close()
            else:
                self._free.append(db)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"file:{quote(str(self.path.absolute()))}?mode=rw",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise RunError(
                    f"{self.path}: the file system has no write-ahead log; put the file on a local disk"
                )
            db.execute(f"PRAGMA cache_size = {-1024 * CACHE}")
            db.execute(f"PRAGMA journal_size_limit = {LARGEST_LOG << 20}")
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        """Raise RunError if the schema or a table of the log is damaged."""
        schema = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        if schema != SCHEMA:
            raise self.damage("its tables are not those of a store")
        for table, check in CHECKS.items():
            fault = db.execute(f"PRAGMA {check}({table})").fetchone()[0]
            if fault != "ok":
                raise self.damage(one_line(fault))

    def _fault(self, error: sqlite3.Error) -> RunError:
        text = one_line(error)
        if "locked" in text:
            return RunError(
                f"{self.path}: another process has held it for {self._timeout:g} s ({text}); "
                "nothing was stored: try again, or stop that process"
            )
        if "full" in text:
            return DiskFull(
                f"{self.path}: no space left on the disk; nothing was stored: free some and try again"
            )
        if "disk I/O error" in text:
            return RunError(
                f"{self.path}: disk I/O error; nothing was stored: check the disk and the limit on file sizes"
            )
        if "readonly" in text or "unable to open" in text:
            return RunError(f"{self.path}: {text}; the file and its folder must be writable")
        return self.damage(text)


@contextmanager
def _transaction(db: sqlite3.Connection, begin: str) -> Iterator[None]:
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself rolls back after some errors, such as a full disk
            db.execute("ROLLBACK")
        raise


def _create(path: Path) -> None:
    """Create an empty store, at once complete for other processes; leaves a file that they created."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            db = sqlite3.connect(temporary, isolation_level=None)
            try:
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {FORMAT}")
                for statement in SCHEMA.values():
                    db.execute(statement)
                db.execute("PRAGMA journal_mode = WAL")
            finally:
                db.close()  # moves everything into the file
            flush_file(temporary)
            os.link(temporary, path)  # unlike a rename, never replaces a file
            flush_file(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        return
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        if not path.parent.is_dir():
            reason = f"{path.parent} is not a folder"
        raise RunError(
            f"cannot create the store {path}: {reason}; its folder must exist and be writable"
        ) from error


def _check_header(path: Path) -> None:
    """Check that a file is a store of a known format, without changing it."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER)
    except OSError as error:
        raise RunError(f"cannot open the store {path}: {error.strerror}") from error
    version, application = struct.unpack(">I4xI", header[60:72]) if len(header) == HEADER else (0, 0)
    if not header.startswith(MAGIC) or application != APPLICATION or version == 0:
        raise RunError(
            f"{path} is not a store of recgrela, or its beginning is damaged; nothing was changed: "
            "give another path, or restore a copy of the file"
        )
    if version > FORMAT:
        raise RunError(
            f"{path} has format {version}, and this version of recgrela reads format {FORMAT}; "
            "nothing was changed: upgrade recgrela"
        )


def _inode(path: Path) -> tuple[int, int] | None:
    """Identity of a file, None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
