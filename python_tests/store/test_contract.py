"""What every store does, on each of them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from python_tests.support.store_oracle import Oracle
from recgrela.store import Event, Store, UserLog, open_store
from recgrela.system.errors import DataError, RunError

MODEL, OTHER = "5e" * 32, "a7" * 32
# Separators, wildcards, control characters, and text that is equal only after normalization.
STRANGE = [
    "a:b",
    "a",
    "*",
    "a*",
    "{a}",
    "%s",
    "'; --",
    " ",
    "\0",
    "a\0b",
    "\n",
    "é",
    "e\u0301",
    "用户",
    "😀",
    "x" * 5000,
]


def events(user: str, text: str, start: float = 0.0) -> list[Event]:
    """An event a second for each character."""
    return [Event(user, item, start + i, None) for i, item in enumerate(text)]


def test_empty_store(store: Store) -> None:
    assert store.append([]) == []
    assert store.load(MODEL, []) == []
    assert store.load(MODEL, ["nobody"]) == [UserLog("nobody", 0, 0, None, [])]
    assert store.history("nobody") == []
    assert list(store.users()) == []
    store.save(MODEL, [("nobody", 0, 0, b""), ("nobody", 0, 1, b"state")])
    assert store.load(MODEL, ["nobody"]) == [UserLog("nobody", 0, 0, None, [])]


def test_seen(store: Store) -> None:
    assert store.seen([]) == []
    store.append([*events("u", "aba"), *events("v", "c")])
    asked = [("u", ["b", "c", "a", "unknown"]), ("nobody", ["a"]), ("v", []), ("u", ["c"]), ("v", ["c", "c"])]
    assert store.seen(asked) == [{"a", "b"}, set(), set(), set(), {"c"}]
    many = [f"item {i}" for i in range(2000)]
    store.append([Event("w", item, 0.0, None) for item in many[::2]])
    assert store.seen([("w", many)]) == [set(many[::2])]


def test_last_events(store: Store) -> None:
    store.append(events("u", "abc"))
    assert [event.item for event in store.history("u", last=2)] == ["b", "c"]
    assert store.history("u", last=0) == [] and store.history("u", last=9) == store.history("u")


def test_append_and_load(store: Store) -> None:
    assert store.append([*events("u", "abc"), *events("v", "d")]) == [True] * 4
    assert store.append(events("u", "a", start=2.0)) == [True]
    assert store.load(MODEL, ["v", "u", "v"]) == [
        UserLog("v", 0, 0, None, ["d"]),
        UserLog("u", 0, 0, None, ["a", "b", "c", "a"]),
        UserLog("v", 0, 0, None, ["d"]),
    ]
    assert store.history("u") == [*events("u", "abc"), Event("u", "a", 2.0, None)]
    assert sorted(store.users()) == ["u", "v"]


def test_ids_are_stored_once_for_each_user(store: Store) -> None:
    first = [
        Event("u", "a", 1.0, "1"),
        Event("u", "b", 2.0, "1"),
        Event("v", "c", 1.0, "1"),
        Event("u", "d", 3.0, "2"),
    ]
    assert store.append(first) == [True, False, True, True]
    assert store.append(
        [Event("u", "e", 0.0, "2"), Event("u", "f", 4.0, None), Event("u", "f", 4.0, None)]
    ) == [
        False,
        True,
        True,
    ]
    assert store.load(MODEL, ["u", "v"]) == [
        UserLog("u", 0, 0, None, ["a", "d", "f", "f"]),
        UserLog("v", 0, 0, None, ["c"]),
    ]
    assert [event.id for event in store.history("u")] == ["1", "2", None, None]


def test_late_events_raise_the_revision(store: Store) -> None:
    store.append(events("u", "abc"))
    store.append([Event("u", "d", 2.0, None)])  # as late as the last one
    assert store.load(MODEL, ["u"])[0] == UserLog("u", 0, 0, None, ["a", "b", "c", "d"])
    store.append([Event("u", "e", 1.0, "late"), Event("u", "f", -1.5, None)])
    assert store.load(MODEL, ["u"])[0] == UserLog("u", 2, 0, None, ["f", "a", "b", "e", "c", "d"])
    assert store.append([Event("u", "e", 0.5, "late")]) == [False]
    assert store.load(MODEL, ["u"])[0].revision == 2


def test_late_events_far_from_the_end(store: Store) -> None:
    store.append([Event("u", str(i), float(i), None) for i in range(1000)])
    store.append([Event("u", "late", 10.0, None), Event("u", "first", -1.0, None)])
    order = ["first", *map(str, range(11)), "late", *map(str, range(11, 1000))]
    assert store.load(MODEL, ["u"])[0] == UserLog("u", 2, 0, None, order)


def test_states(store: Store) -> None:
    store.append(events("u", "abcd"))
    store.save(MODEL, [("u", 0, 2, b"two")])
    assert store.load(MODEL, ["u"]) == [UserLog("u", 0, 2, b"two", ["c", "d"])]
    assert store.load(OTHER, ["u"]) == [UserLog("u", 0, 0, None, ["a", "b", "c", "d"])]
    store.save(MODEL, [("u", 0, 4, b"four"), ("u", 0, 3, b"three")])
    assert store.load(MODEL, ["u"]) == [UserLog("u", 0, 4, b"four", [])]
    store.append(events("u", "e", start=9.0))
    assert store.load(MODEL, ["u"]) == [UserLog("u", 0, 4, b"four", ["e"])]


@pytest.mark.parametrize(
    "entry",
    [
        ("u", 0, 2, b"fewer"),
        ("u", 0, 3, b"as many"),
        ("u", 1, 4, b"future"),
        ("u", 0, 5, b"beyond"),
        ("u", 0, 0, b"none"),
    ],
    ids=lambda entry: entry[3].decode(),
)
def test_states_that_are_not_kept(store: Store, entry: tuple[str, int, int, bytes]) -> None:
    store.append(events("u", "abcd"))
    store.save(MODEL, [("u", 0, 3, b"three")])
    store.save(MODEL, [entry])
    assert store.load(MODEL, ["u"]) == [UserLog("u", 0, 3, b"three", ["d"])]


def test_states_of_an_earlier_revision_are_stale(store: Store) -> None:
    store.append(events("u", "abcd"))
    store.save(MODEL, [("u", 0, 4, b"four")])
    store.append([Event("u", "e", 0.5, None)])
    log = UserLog("u", 1, 0, None, ["a", "e", "b", "c", "d"])
    assert store.load(MODEL, ["u"]) == [log]
    store.save(MODEL, [("u", 0, 5, b"computed before the late event")])
    assert store.load(MODEL, ["u"]) == [log]
    store.save(MODEL, [("u", 1, 2, b"two")])
    assert store.load(MODEL, ["u"]) == [UserLog("u", 1, 2, b"two", ["b", "c", "d"])]


def test_drop_states(store: Store) -> None:
    store.append(events("u", "ab"))

    def states() -> list[bytes | None]:
        return [store.load(model, ["u"])[0].state for model in (MODEL, OTHER)]

    for model, left in ((MODEL, [None, b"2"]), (None, [None, None]), ("unknown", [b"1", b"2"])):
        store.save(MODEL, [("u", 0, 1, b"1")])
        store.save(OTHER, [("u", 0, 2, b"2")])
        store.drop_states(model)
        assert states() == left
    assert store.load(MODEL, ["u"])[0] == UserLog("u", 0, 1, b"1", ["b"])


@pytest.mark.parametrize("state", [b"", b"\0", bytes(range(256)) * 80], ids=["empty", "zero", "20 KB"])
def test_any_bytes_are_a_state(store: Store, state: bytes) -> None:
    store.append(events("u", "ab"))
    store.save(MODEL, [("u", 0, 1, state)])
    assert store.load(MODEL, ["u"]) == [UserLog("u", 0, 1, state, ["b"])]


def test_any_text(store: Store) -> None:
    batch = [
        Event(user, item, 0.0, id)
        for user in STRANGE
        for item, id in zip(STRANGE, STRANGE[::-1], strict=True)
    ]
    assert store.append(batch) == [True] * len(batch)
    assert store.append(batch) == [False] * len(batch)
    for strange in STRANGE:
        store.save(strange, [(user, 0, 1, user.encode()) for user in STRANGE])
        logs = store.load(strange, STRANGE)
        assert logs == [UserLog(user, 0, 1, user.encode(), STRANGE[1:]) for user in STRANGE]
    assert sorted(store.users()) == sorted(STRANGE)
    assert store.history("a*") == [event for event in batch if event.user == "a*"]


def test_any_finite_time(store: Store) -> None:
    times = [-1e308, -1.5, -0.0, 5e-324, 0.1, 1, 1.7e9 + 1e-6, 2**53 - 1.0, 1e308]
    store.append([Event("u", "a", time, None) for time in times])
    assert [event.time for event in store.history("u")] == times
    assert store.load(MODEL, ["u"])[0].revision == 0


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Event("", "a", 0.0, None), "event 1: user is empty"),
        (Event("u", "", 0.0, None), "event 1: item is empty"),
        (Event("u", "a", 0.0, ""), "event 1: id is empty"),
        (Event(7, "a", 0.0, None), "event 1: user is 7; it must be text"),
        (Event("u", b"a", 0.0, None), "event 1: item is b'a'; it must be text"),
        (Event("u", "\ud800", 0.0, None), r"event 1: item is '\\ud800', which is not valid Unicode"),
        (Event("u", "a", float("nan"), None), "event 1: time is nan; give seconds since 1970"),
        (Event("u", "a", float("inf"), None), "event 1: time is inf"),
        (Event("u", "a", 10**400, None), "event 1: time is 1000"),
        (Event("u", "a", "0", None), "event 1: time is '0'"),
        (Event("u", "a", True, None), "event 1: time is True"),
    ],
)
def test_bad_events_store_nothing(store: Store, event: Event, message: str) -> None:
    with pytest.raises(DataError, match=message):
        store.append([Event("u", "a", 0.0, None), event])
    assert list(store.users()) == []


def test_a_large_batch(store: Store) -> None:
    batch = [Event(f"user {i % 1300}", f"item {i % 2000}", float(i), f"id {i}") for i in range(5000)]
    assert store.append(batch) == [True] * 5000
    assert store.append(batch) == [False] * 5000
    users = [f"user {i}" for i in range(1300)]
    store.save(MODEL, [(user, 0, 1, user.encode() * 40) for user in users])
    for i, log in enumerate(store.load(MODEL, users)):
        items = [f"item {j % 2000}" for j in range(i, 5000, 1300)]
        assert log == UserLog(users[i], 0, 1, users[i].encode() * 40, items[1:])
    assert sorted(store.users()) == sorted(users)


def test_tables_and_events_are_stored_alike(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recgrela.store.base.ROWS_PER_APPEND", 7)
    rng, oracle = random.Random(0), Oracle()
    batches = []
    for _ in range(3):
        batch = [
            Event(
                str(rng.randrange(4)),
                str(rng.randrange(9)),
                float(rng.randrange(30)),
                rng.choice([None, "a", "b"]),
            )
            for _ in range(20)
        ]
        columns = {name: [getattr(e, name) for e in batch] for name in ("user", "item", "time", "id")}
        batches.append((pa.table(columns), sum(oracle.append(batch))))
    assert store.append_table(batches[0][0]) == batches[0][1]
    assert store.import_events(table for table, _ in batches[1:]) == batches[1][1] + batches[2][1]
    users = [str(i) for i in range(4)]
    assert store.load(MODEL, users) == oracle.load(MODEL, users)
    assert [store.history(user) for user in users] == [oracle.history(user) for user in users]


def test_random_operations(url: str) -> None:
    """Operations in random order, equal to the oracle's after each of them, and after reopening."""
    rng, oracle = random.Random(7), Oracle()
    users, models = [f"user {i}" for i in range(6)], [MODEL, OTHER]
    store = open_store(url)
    try:
        for step in range(400):
            kind, model = rng.choice(["append"] * 4 + ["save"] * 4 + ["drop", "reopen"]), rng.choice(models)
            if kind == "append":
                batch = [
                    Event(
                        rng.choice(users),
                        f"item {rng.randrange(20)}",
                        float(step // 40 + rng.randrange(4) // 3),
                        f"id {rng.randrange(300)}" if rng.random() < 0.5 else None,
                    )
                    for _ in range(rng.randrange(5))
                ]
                assert store.append(batch) == oracle.append(batch)
            elif kind == "save":
                logs = oracle.load(model, [rng.choice(users) for _ in range(3)])
                entries = [
                    (
                        log.user,
                        log.revision - (rng.random() < 0.2),
                        log.folded + rng.randrange(-1, len(log.pending) + 2),
                        f"state {step} {log.user}".encode(),
                    )
                    for log in logs
                ]
                store.save(model, entries)
                oracle.save(model, entries)
            elif kind == "drop" and rng.random() < 0.3:
                store.drop_states(model)
                oracle.drop_states(model)
            elif kind == "reopen" and rng.random() < 0.3:
                store.close()
                store = open_store(url)
            assert store.load(model, users) == oracle.load(model, users)
        assert [store.history(user) for user in users] == [oracle.history(user) for user in users]
        assert [store.history(user, last=3) for user in users] == [
            oracle.history(user, last=3) for user in users
        ]
        asked = [(user, [f"item {i}" for i in range(0, 40, 2)]) for user in [*users, "nobody"]]
        assert store.seen(asked) == oracle.seen(asked)
        assert sorted(store.users()) == sorted(oracle.logs)
        assert max(oracle.revisions.values()) > 5 and len(oracle.states) > 5  # the steps had both
    finally:
        store.close()


def test_threads(store: Store) -> None:
    """Threads append, save and load at once; every event is there once, and states fit the log."""

    def work(number: int) -> None:
        for i in range(20):
            store.append(
                [
                    Event("u", f"{number} {i}", float(i), f"{number} {i}"),
                    Event("u", "x", float(i), f"shared {i}"),
                ]
            )
            log = store.load(MODEL, ["u"])[0]
            items = (log.state.decode().split(",") if log.state else []) + log.pending
            assert len(items) == len(set(items)) + max(0, items.count("x") - 1)
            store.save(MODEL, [("u", log.revision, len(items), ",".join(items).encode())])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    items = [event.item for event in store.history("u")]
    assert sorted(items) == sorted([f"{n} {i}" for n in range(4) for i in range(20)] + ["x"] * 20)
    log = store.load(MODEL, ["u"])[0]
    assert (log.state.decode().split(",") if log.state else []) + log.pending == items


def test_events_survive_reopening(url: str) -> None:
    with open_store(url) as store:
        store.append([*events("u", "abc"), Event("u", "d", 0.5, "late")])
        store.save(MODEL, [("u", 1, 2, b"two")])
    with open_store(url) as store:
        assert store.load(MODEL, ["u"]) == [UserLog("u", 1, 2, b"two", ["b", "c"])]
        assert store.append([Event("u", "d", 0.5, "late")]) == [False]


def test_a_closed_store(url: str) -> None:
    store = open_store(url)
    store.close()
    store.close()
    for use in (
        lambda: store.append(events("u", "a")),
        lambda: store.load(MODEL, ["u"]),
        lambda: list(store.users()),
    ):
        with pytest.raises(RunError, match="is closed"):
            use()
