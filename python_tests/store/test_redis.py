"""What only the Redis store has: settings of the server, its errors, damaged values, old data."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from python_tests.support.redis_server import DURABLE, RedisServer
from recgrela.store import Event, RedisStore, UserLog, open_store
from recgrela.store.redis_records import pack_event, unpack_event
from recgrela.system.errors import ConfigError, RunError

MODEL = "5e" * 32


@pytest.fixture
def server_with(tmp_path: Path, request: pytest.FixtureRequest) -> RedisServer:
    server = RedisServer(tmp_path, request.param)
    request.addfinalizer(server.stop)
    return server


def test_a_durable_server_gives_no_warning(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    open_store(redis_url).close()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("server_with", "settings"),
    [
        ((), ["appendonly no", "appendfsync everysec"]),
        (("--appendonly", "yes"), ["appendfsync everysec"]),
        ((*DURABLE, "--maxmemory-policy", "allkeys-lru"), ["maxmemory-policy allkeys-lru"]),
        ((*DURABLE, "--rename-command", "CONFIG", ""), ["does not show its settings"]),
    ],
    indirect=["server_with"],
    ids=["memory only", "every second", "eviction", "no settings"],
)
def test_settings_that_lose_events_give_warnings(
    server_with: RedisServer, settings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(server_with.url) as store:
        assert store.append([Event("u", "a", 0.0, None)]) == [True]
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == len(settings)
    for message, setting in zip(messages, settings, strict=True):
        assert f"Redis at 127.0.0.1:{server_with.port}" in message and setting in message
        assert "events can be lost" in message


@pytest.mark.parametrize(
    "server_with", [(*DURABLE, "--requirepass", "secret")], indirect=True, ids=["password"]
)
def test_passwords(server_with: RedisServer) -> None:
    place = f"127.0.0.1:{server_with.port}"
    for user in ("", ":wrong@"):
        with pytest.raises(
            RunError, match=f"Redis at {place}, database 0 refuses the user or password"
        ) as caught:
            open_store(f"redis://{user}{place}/0")
        assert "wrong@" not in str(caught.value)
    with open_store(f"redis://:secret@{place}/3") as store:
        assert store.append([Event("u", "a", 0.0, None)]) == [True]


@pytest.mark.parametrize("server_with", [(*DURABLE, "--maxmemory", "3mb")], indirect=True, ids=["3 MB"])
def test_a_full_server(server_with: RedisServer) -> None:
    """A refused batch is an error, and the store works again once there is memory."""
    import redis

    with open_store(server_with.url) as store:
        store.append([Event("u", "a", 0.0, "1")])
        with pytest.raises(RunError, match="maxmemory"):
            for i in range(100):
                store.append([Event("v", "x" * 100_000, float(i), None)])
        assert store.load(MODEL, ["u"])[0].pending == ["a"]
        redis.Redis.from_url(server_with.url).config_set("maxmemory", 0)
        assert store.append([Event("u", "b", 1.0, "2")]) == [True]


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"cannot reach Redis at 127.0.0.1:1, database 0: .*; start the server"
    ):
        open_store("redis://127.0.0.1:1/0")
    with pytest.raises(RunError, match=f"cannot reach Redis at {tmp_path}/no.sock"):
        open_store(f"unix://{tmp_path}/no.sock")


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match="pip install redis"):
        open_store("redis://127.0.0.1:1/0")


def test_bad_addresses(redis_url: str) -> None:
    with pytest.raises(ConfigError, match="give redis://host:port/db"):
        open_store("redis://127.0.0.1:port/0")
    with pytest.raises(ConfigError, match="'foo'; give redis://host:port/db"):
        open_store(f"{redis_url}?foo=x")
    with pytest.raises(ConfigError, match="decode_responses must not be set"):
        open_store(f"{redis_url}?decode_responses=true")


def test_data_of_a_newer_format(redis_url: str) -> None:
    import redis

    redis.Redis.from_url(redis_url).set("recgrela:format", "2")
    with pytest.raises(RunError, match="has data of format 2, and this version of recgrela reads format 1"):
        open_store(redis_url)


def test_other_types_of_keys_are_errors(redis_url: str) -> None:
    import redis

    with open_store(redis_url) as store:
        redis.Redis.from_url(redis_url).set("recgrela:log:u", "not a list")
        for use in (lambda: store.append([Event("u", "a", 0.0, None)]), lambda: store.load(MODEL, ["u"])):
            with pytest.raises(RunError, match="WRONGTYPE"):
                use()


def test_late_events_of_a_call_are_inserted_together(redis_url: str) -> None:
    """The end of the log is read and written once, or many late events would block the server."""
    import redis

    client = redis.Redis.from_url(redis_url)
    with open_store(redis_url) as store:
        store.append([Event("u", f"old {i}", 1000.0 + i, None) for i in range(2000)])
        client.config_resetstat()
        late = [Event("u", f"late {i}", float(7 * i % 500), None) for i in range(500)]
        store.append([*late, Event("u", "last", 9000.0, None)])
        stats = client.info("commandstats")
        calls = {
            name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("ltrim", "del", "rpush")
        }
        assert calls["ltrim"] + calls["del"] == 1
        assert calls["rpush"] == 3  # 1,000 records each
        in_order = sorted(late, key=lambda event: event.time)
        order = [*(event.item for event in in_order), *(f"old {i}" for i in range(2000)), "last"]
        assert store.load(MODEL, ["u"]) == [UserLog("u", 500, 0, None, order)]


def test_lost_scripts_are_sent_again(redis_url: str) -> None:
    import redis

    with open_store(redis_url) as store:
        store.append([Event("u", "a", 0.0, None)])
        redis.Redis.from_url(redis_url).script_flush()
        assert store.append([Event("u", "b", 1.0, None), Event("v", "c", 1.0, None)]) == [True, True]
        assert [log.pending for log in store.load(MODEL, ["u", "v"])] == [["a", "b"], ["c"]]


def test_damaged_states_are_computed_again(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    with open_store(redis_url) as store:
        store.append([Event(user, "a", 0.0, None) for user in ("u", "v")])
        for position in (0, 15, 17, 20, 24):
            store.save(MODEL, [(user, 0, 1, b"state") for user in ("u", "v")])
            record = bytearray(client.hget(f"recgrela:states:{MODEL}", "u"))
            record[position] ^= 1
            client.hset(f"recgrela:states:{MODEL}", "u", bytes(record))
            caplog.clear()
            assert store.load(MODEL, ["v", "u"]) == [
                UserLog("v", 0, 1, b"state", []),
                UserLog("u", 0, 0, None, ["a"]),
            ]
            # Another revision, or more events than there are, is a state that does not count.
            assert ("the state of user 'u' is damaged" in caplog.text) == (position > 15)
            store.save(MODEL, [("u", 0, 1, b"state")])
            assert store.load(MODEL, ["u"]) == [UserLog("u", 0, 1, b"state", [])]


def test_damaged_events_are_errors(redis_url: str) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    with open_store(redis_url) as store:
        store.append([Event("u", "item", 1.5, "id")])
        record = client.lindex("recgrela:log:u", 0)
        for position in range(len(record)):
            damaged = bytearray(record)
            damaged[position] ^= 1
            client.lset("recgrela:log:u", 0, bytes(damaged))
            for use in (lambda: store.history("u"), lambda: store.load(MODEL, ["u"])):
                with pytest.raises(RunError, match="an event of user 'u' is damaged"):
                    use()


def test_records() -> None:
    for length in (1, 63, 64, 127, 128, 8191, 8192, 100_000):
        for id in (None, "a", "é" * length):
            record = pack_event(b"u", b"x" * length, -1.5, None if id is None else id.encode())
            assert unpack_event(b"u", record) == Event("u", "x" * length, -1.5, id)
    assert len(pack_event(b"u", b"1234", 0.0, None)) == 17
    with pytest.raises(ValueError, match="wrong checksum"):
        unpack_event(b"another user", pack_event(b"u", b"a", 0.0, None))


def test_stores_of_one_server_are_separate(redis_url: str) -> None:
    with open_store(redis_url) as store, RedisStore(redis_url.removesuffix("0") + "1") as other:
        store.append([Event("u", "a", 0.0, None)])
        assert list(other.users()) == []
