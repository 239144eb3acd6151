"""The embedded store: one SQLite file, for the processes of one machine.

`recgrela.store.sqlite_file` has the tables. Users and items are numbered. An event's key is (user, time,
arrival), where arrival is the number of the user's events that arrived before, so that a log is read in
order. A user's row has the number of events; the events after a state are the last ones of the log, and are
found from its end. Ids are in a table of their own, which events without ids do not touch.
Rows have checksums.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from recgrela.store.arguments import Entry
from recgrela.store.base import Store
from recgrela.store.checks import WRONG_TYPE, event_check, id_check, state_check, text_check, user_check
from recgrela.store.columns import Columns
from recgrela.store.events import Event, UserLog
from recgrela.store.sqlite_file import SQLiteFile

NAMES_PER_QUERY = 500  # SQLite before 3.32 takes at most 999 parameters
USERS_PER_PAGE = 1000
SELECT_USERS = "SELECT number, name, revision, count, last, crc FROM users WHERE"

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _User:
    """A row of `users`; new if it is not stored yet."""

    number: int
    name: str
    revision: int
    count: int  # events
    last: float  # time of the last event
    check: int  # text_check(name)
    stored: int  # events when the row was read

    def row_check(self) -> int:
        return user_check(self.check, self.number, self.revision, self.count, self.last)


class SQLiteStore(Store):
    """A store in an SQLite file (write-ahead log, synchronous=FULL).

    Args:
        path: the file; created if it does not exist. It must be on a local disk.
        timeout: seconds to wait for another process that writes.

    Raises:
        RunError: the file cannot be opened, is not a store, is of a newer format, or is damaged. It is left
            as it is.
    """

    def __init__(self, path: Path | str, timeout: float = 10.0) -> None:
        self._file = SQLiteFile(Path(path), timeout)

    def _append(self, columns: Columns) -> list[bool]:
        if not columns.users:
            return []
        with self._file.writing(durable=True) as db:
            users = self._users(db, columns.users)
            numbers = _numbers(db, "items", columns.items)
            items = {item: (number, text_check(item)) for item, number in numbers.items()}
            new_user = _next_number(db, "users")
            rows: list[tuple[int, float, int, int, int]] = []
            accepted = []
            for name, item, time, id in zip(*columns, strict=True):
                user = users.get(name)
                if user is None:
                    user = users[name] = _User(new_user, name, 0, 0, time, text_check(name), 0)
                    new_user += 1
                if id is not None and not _insert_id(db, user, id):
                    accepted.append(False)
                    continue
                if time < user.last:
                    user.revision += 1
                else:
                    user.last = time
                arrival = user.count
                user.count = arrival + 1
                number, check = items[item]
                crc = event_check(user.check, check, time, arrival)
                rows.append((user.number, time, arrival, number, crc))
                accepted.append(True)
            rows.sort(key=itemgetter(0))  # neighbours in the table are inserted together
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
            db.executemany(
                "INSERT INTO users VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (number) DO UPDATE SET revision = "
                "excluded.revision, count = excluded.count, last = excluded.last, crc = excluded.crc",
                [
                    (user.number, user.name, user.revision, user.count, user.last, user.row_check())
                    for user in users.values()
                    if user.count > user.stored
                ],
            )
        return accepted

    def _load(self, model: str, users: list[str]) -> list[UserLog]:
        damaged: list[tuple[int, int, int]] = []
        logs: dict[str, UserLog] = {}
        with self._file.reading() as db:
            found = self._users(db, users)
            states = self._states(db, model, found.values(), damaged)
            for user in found.values():
                folded, state = states.get(user.number, (0, None))
                pending = [event[1] for event in self._last_events(db, user, user.count - folded)]
                logs[user.name] = UserLog(user.name, user.revision, folded, state, pending)
        if damaged:
            with self._file.writing(durable=False) as db:  # otherwise the new state would not be kept
                db.executemany("DELETE FROM states WHERE model = ? AND user = ? AND crc IS ?", damaged)
        return [logs.get(user) or UserLog(user, 0, 0, None, []) for user in users]

    def _save(self, model: str, entries: list[Entry]) -> None:
        with self._file.writing(durable=False) as db:
            users = self._users(db, [user for user, _, _, _ in entries])
            number, check = _numbers(db, "models", [model])[model], text_check(model)
            rows = [
                (
                    number,
                    user.number,
                    revision,
                    folded,
                    state_check(user.check, check, revision, folded, state),
                    state,
                )
                for name, revision, folded, state in entries
                if (user := users.get(name)) and revision == user.revision and folded <= user.count
            ]
            db.executemany(
                "INSERT INTO states VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (model, user) DO UPDATE SET "
                "revision = excluded.revision, folded = excluded.folded, crc = excluded.crc, "
                "state = excluded.state WHERE excluded.revision != revision OR excluded.folded > folded",
                rows,
            )

    def _seen(self, asked: list[tuple[str, list[str]]]) -> list[set[str]]:
        with self._file.reading() as db:
            users = self._users(db, [user for user, _ in asked])
            return [self._having(db, users.get(user), items) for user, items in asked]

    def _having(self, db: sqlite3.Connection, user: _User | None, items: list[str]) -> set[str]:
        """The ones among some items that a user has."""
        if user is None:
            return set()
        query = (
            f"SELECT name FROM items WHERE EXISTS (SELECT 1 FROM events WHERE user = {user.number} AND "
            "item = number) AND name IN"
        )
        return {name for (name,) in _select_in(db, query, items)}

    def _history(self, user: str, last: int | None) -> list[Event]:
        with self._file.reading() as db:
            found = self._users(db, [user]).get(user)
            if found is None:
                return []
            ids = self._ids(db, found)
            events = self._last_events(db, found, found.count if last is None else min(last, found.count))
        return [Event(user, item, time, ids.get(arrival)) for time, item, arrival in events]

    def users(self) -> Iterator[str]:
        number = -1
        while True:
            with self._file.reading() as db:
                query = f"{SELECT_USERS} number > ? ORDER BY number LIMIT ?"
                page = [self._user(row) for row in db.execute(query, (number, USERS_PER_PAGE))]
            yield from (user.name for user in page)
            if len(page) < USERS_PER_PAGE:
                return
            number = page[-1].number

    def _drop_states(self, model: str | None) -> None:
        with self._file.writing(durable=False) as db:
            if model is None:
                db.execute("DELETE FROM states")
            else:
                db.execute(
                    "DELETE FROM states WHERE model = (SELECT number FROM models WHERE name = ?)", (model,)
                )

    def close(self) -> None:
        self._file.close()

    def _users(self, db: sqlite3.Connection, names: Iterable[str]) -> dict[str, _User]:
        """The stored ones among the named users."""
        users = (self._user(row) for row in _select_in(db, f"{SELECT_USERS} name IN", set(names)))
        return {user.name: user for user in users}

    def _user(self, row: tuple[int, str, int, int, float, int]) -> _User:
        number, name, revision, count, last, crc = row
        try:
            user = _User(number, name, revision, count, last, text_check(name), count)
            good = user.row_check() == crc
        except WRONG_TYPE:
            good = False
        if not good:
            raise self._file.damage("the row of a user has a wrong checksum")
        return user

    def _last_events(self, db: sqlite3.Connection, user: _User, count: int) -> list[tuple[float, str, int]]:
        """Time, item and arrival of a user's last events, in order."""
        if count == 0:
            return []
        rows = db.execute(
            "SELECT time, arrival, name, crc FROM events LEFT JOIN items ON number = item WHERE user = ? "
            "ORDER BY time DESC, arrival DESC LIMIT ?",
            (user.number, count),
        ).fetchall()
        if len(rows) != count:
            raise self._file.damage(f"user {user.name!r} has fewer than {user.count} events")
        for time, arrival, item, crc in rows:
            try:
                good = event_check(user.check, text_check(item), time, arrival) == crc
            except WRONG_TYPE:
                good = False
            if not good:
                raise self._file.damage(f"an event of user {user.name!r} has a wrong checksum")
        return [(time, item, arrival) for time, arrival, item, _ in reversed(rows)]

    def _ids(self, db: sqlite3.Connection, user: _User) -> dict[int, str]:
        """Ids of a user's events by their arrival."""
        ids = {}
        for id, arrival, crc in db.execute("SELECT id, arrival, crc FROM ids WHERE user = ?", (user.number,)):
            try:
                good = id_check(user.check, id, arrival) == crc
            except WRONG_TYPE:
                good = False
            if not good:
                raise self._file.damage(f"an id of user {user.name!r} has a wrong checksum")
            ids[arrival] = id
        return ids

    def _states(
        self, db: sqlite3.Connection, model: str, users: Iterable[_User], damaged: list[tuple[int, int, int]]
    ) -> dict[int, tuple[int, bytes]]:
        """Folded and state by number of the user; adds model, user and checksum of damaged ones to a list."""
        found = db.execute("SELECT number FROM models WHERE name = ?", (model,)).fetchone()
        if found is None:
            return {}
        by_number, check = {user.number: user for user in users}, text_check(model)
        query = f"SELECT user, revision, folded, crc, state FROM states WHERE model = {found[0]} AND user IN"
        states = {}
        for number, revision, folded, crc, state in _select_in(db, query, by_number):
            user = by_number[number]
            try:
                good = state_check(user.check, check, revision, folded, state) == crc
            except WRONG_TYPE:
                good = False
            if not good:
                logger.warning(
                    "%s: the state of user %r is damaged and is computed again from the log",
                    self._file.path,
                    user.name,
                )
                damaged.append((found[0], number, crc))
            elif revision == user.revision:
                states[number] = (folded, state)
        return states


def _select_in(db: sqlite3.Connection, query: str, values: Iterable[object]) -> Iterator[tuple]:
    """The rows of `query (values)`, in queries of a bounded number of values."""
    remaining = list(values)
    for start in range(0, len(remaining), NAMES_PER_QUERY):
        part = remaining[start : start + NAMES_PER_QUERY]
        yield from db.execute(f"{query} ({','.join('?' * len(part))})", part).fetchall()


def _numbers(db: sqlite3.Connection, table: str, names: Iterable[str]) -> dict[str, int]:
    """The numbers of names in `items` or `models`; adds the missing ones."""
    wanted = dict.fromkeys(names)
    numbers: dict[str, int] = dict(_select_in(db, f"SELECT name, number FROM {table} WHERE name IN", wanted))
    following = _next_number(db, table)
    new = {name: following + i for i, name in enumerate(name for name in wanted if name not in numbers)}
    db.executemany(f"INSERT INTO {table} (name, number) VALUES (?, ?)", new.items())
    return numbers | new


def _next_number(db: sqlite3.Connection, table: str) -> int:
    return db.execute(f"SELECT coalesce(max(number), 0) + 1 FROM {table}").fetchone()[0]


def _insert_id(db: sqlite3.Connection, user: _User, id: str) -> bool:
    """Record the id of a user's next event; False if the user has it already."""
    row = (user.number, id, user.count, id_check(user.check, id, user.count))
    return db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?, ?)", row).rowcount == 1
