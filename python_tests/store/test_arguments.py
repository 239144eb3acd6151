"""Arguments of a store's methods, on each store: what is taken, and what is refused without a change."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recgrela.store import Event, SQLiteStore, Store, UserLog
from recgrela.system.errors import DataError

MODEL = "5e" * 32
KEPT = UserLog("1", 0, 1, b"kept", ["b"])


@pytest.fixture
def filled(store: Store) -> Store:
    """A store whose user "1" has the events a and b, and a state after the first."""
    store.append([Event("1", "a", 0.0), Event("1", "b", 1.0)])
    store.save(MODEL, [("1", 0, 1, b"kept")])
    return store


@pytest.mark.parametrize(
    "state", [b"st", bytearray(b"st"), memoryview(b"st"), np.frombuffer(b"st", np.uint8)]
)
def test_numbers_and_bytes_of_other_types(filled: Store, state: object) -> None:
    filled.save(MODEL, ((np.str_("1"), np.int64(0), np.int64(2), state) for _ in range(1)))
    assert filled.load(MODEL, (user for user in ["1"])) == [UserLog("1", 0, 2, b"st", [])]
    assert filled.load(MODEL, np.array(["1"])) == filled.load(MODEL, ["1"])
    assert filled.history("1", last=np.int64(1)) == [Event("1", "b", 1.0)]
    assert len(filled.history("1", last=2**70)) == 2


def test_numbers_that_no_log_has_are_ignored(filled: Store) -> None:
    filled.save(
        MODEL, [("1", 0, 2**70, b"st"), ("1", 2**70, 2, b"st"), ("1", -1, 2, b"st"), ("1", 0, -1, b"")]
    )
    assert filled.load(MODEL, ["1"]) == [KEPT]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda s: s.load(MODEL, [1]), r"users\[0\] is 1; it must be text"),
        (lambda s: s.load(MODEL, ["1", 2**70]), r"users\[1\] is 1180591620717411303424; it must be text"),
        (lambda s: s.load(MODEL, [("1",)]), r"users\[0\] is \('1',\); it must be text"),
        (lambda s: s.load(MODEL, ["\ud800"]), r"users\[0\] is '\\ud800', which is not valid Unicode"),
        (lambda s: s.load(MODEL, [""]), r"users\[0\] is empty"),
        (lambda s: s.load(MODEL, "1"), "users is '1'; give a list"),
        (lambda s: s.load(MODEL, None), "users is None; give a list"),
        (lambda s: s.load(None, ["1"]), "model is None; it must be text"),
        (lambda s: s.history(1), "user is 1; it must be text"),
        (lambda s: s.history("\ud800"), r"user is '\\ud800', which is not valid Unicode"),
        (lambda s: s.history("1", last=-1), "last is -1; give a number of at least 0"),
        (lambda s: s.history("1", last=1.5), r"last is 1\.5; it must be an integer"),
        (lambda s: s.seen("1"), "asked is '1'; give a list"),
        (lambda s: s.seen(["1"]), r"asked\[0\] is '1'; give \(user, items\)"),
        (lambda s: s.seen([(1, ["a"])]), r"asked\[0\]: user is 1; it must be text"),
        (lambda s: s.seen([("1", "ab")]), r"asked\[0\]: items is 'ab'; give a list"),
        (lambda s: s.seen([("1", ["a", 2])]), r"asked\[0\]: items\[1\] is 2; it must be text"),
        (lambda s: s.save(None, [("1", 0, 2, b"st")]), "model is None; it must be text"),
        (lambda s: s.save(MODEL, None), "entries is None; give a list"),
        (lambda s: s.save(MODEL, ["1"]), r"entries\[0\] is '1'; give \(user, revision, folded, state\)"),
        (lambda s: s.save(MODEL, [("1", 0, 2, b"st"), (1, 0, 2, b"")]), r"entries\[1\]: user is 1; it must"),
        (lambda s: s.save(MODEL, [("\ud800", 0, 2, b"")]), r"entries\[0\]: user is .* not valid Unicode"),
        (lambda s: s.save(MODEL, [("1", "0", 2, b"")]), r"entries\[0\]: revision is '0'; it must be an int"),
        (lambda s: s.save(MODEL, [("1", 0, 2.0, b"")]), r"entries\[0\]: folded is 2\.0; it must be an int"),
        (lambda s: s.save(MODEL, [("1", 0, 2, "st")]), r"entries\[0\]: state is of str; it must be bytes"),
        (lambda s: s.save(MODEL, [("1", 0, 2, 5)]), r"entries\[0\]: state is of int; it must be bytes"),
        (lambda s: s.drop_states(1), "model is 1; it must be text"),
    ],
)
def test_bad_arguments_change_nothing(filled: Store, use: Callable[[Store], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        use(filled)
    assert filled.load(MODEL, ["1"]) == [KEPT]


@pytest.mark.parametrize(
    ("statement", "values", "kind"),
    [
        ("SELECT ?", ([],), (sqlite3.ProgrammingError, sqlite3.InterfaceError)),
        ("INSERT INTO items (name) VALUES (?)", (None,), sqlite3.IntegrityError),
    ],
)
def test_bugs_are_not_reported_as_damage(
    tmp_path: Path, statement: str, values: tuple, kind: type[sqlite3.Error]
) -> None:
    with SQLiteStore(tmp_path / "store.db") as store:
        with pytest.raises(kind), store._file.writing(durable=True) as db:
            db.execute(statement, values)
        assert store.append([Event("u", "a", 0.0)]) == [True]
