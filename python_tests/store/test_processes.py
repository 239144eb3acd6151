"""Stores under several processes, and after the death of one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from python_tests.support.redis_server import RedisServer
from python_tests.support.store_worker import MODEL, ROUNDS, USERS, items_of, spawn
from recgrela.store import Event, open_store
from recgrela.system.errors import RunError


def test_processes_share_a_store(url: str) -> None:
    """No event is lost or stored twice, and the states that processes save fit the log."""
    processes = [spawn("share", url, number) for number in range(3)]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]
    sent = [f"{number}/{i}" for number in range(3) for i in range(ROUNDS)] + [
        f"shared/{i}" for i in range(ROUNDS)
    ]
    with open_store(url) as store:
        for log in store.load(MODEL, USERS):
            history = store.history(log.user)
            assert sorted(event.item for event in history) == sorted(sent)
            assert [event.time for event in history] == sorted(event.time for event in history)
            assert items_of(log.state) + log.pending == [event.item for event in history]
            assert log.revision > 0
        assert sorted(store.load(MODEL, ["w"])[0].pending) == sorted(
            str(n) for n in range(3) for _ in range(ROUNDS)
        )
        assert sorted(store.users()) == ["u", "v", "w"]


def check_acknowledged(url: str, acknowledged: int) -> None:
    """The log has each acknowledged batch and at most one more, which was being stored; states fit it."""
    with open_store(url) as store:
        items = [event.item for event in store.history("u")]
        batches = len(items) // 3
        assert items == [f"{i}/{part}" for i in range(batches) for part in range(3)]
        assert acknowledged < batches <= acknowledged + 2
        log = store.load(MODEL, ["u"])[0]
        assert items[log.folded :] == log.pending
        assert log.state in (None, str(log.folded // 3 - 1).encode() * 3000)
        assert store.append([Event("u", "again", 1e6, "0/0"), Event("u", "new", 1e6, "new")]) == [False, True]


def test_acknowledged_events_survive_a_killed_process(url: str) -> None:
    for _ in range(2):
        process = spawn("acknowledge", url, 0)
        lines = [process.stdout.readline() for _ in range(10)]
        os.kill(process.pid, signal.SIGKILL)
        last = int((lines + process.stdout.readlines())[-1])
        process.wait()
        process.stdout.close()
        check_acknowledged(url, last)
        url = fresh(url)


def fresh(url: str) -> str:
    """The URL of another empty store of the same kind."""
    if url.startswith("sqlite"):
        return url + "x"
    import redis

    redis.Redis.from_url(url).flushdb()
    return url


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for one test, which may kill it."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def test_acknowledged_events_survive_a_killed_server(server: RedisServer) -> None:
    process = spawn("acknowledge", server.url, 0)
    lines = [process.stdout.readline() for _ in range(10)]
    server.kill()
    output, _ = process.communicate()
    assert process.returncode == 1  # a RunError
    acknowledged = int((lines + output.splitlines())[-1])
    server.start()
    check_acknowledged(server.url, acknowledged)


def test_a_store_survives_a_restart_of_the_server(server: RedisServer) -> None:
    with open_store(server.url) as store:
        store.append([Event("u", "a", 0.0, None)])
        server.kill()
        with pytest.raises(RunError, match=f"cannot reach Redis at 127.0.0.1:{server.port}, database 0"):
            store.append([Event("u", "b", 1.0, "1")])
        server.start()  # without the scripts of the store
        assert store.append([Event("u", "b", 1.0, "1")]) == [True]
        assert [event.item for event in store.history("u")] == ["a", "b"]


def test_a_store_from_before_a_fork(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as store:
        child = os.fork()
        if child == 0:
            try:
                store.append([Event("u", "a", 0.0, None)])
            except RunError as error:
                os._exit(7 if "opened before this process was forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert store.append([Event("u", "a", 0.0, None)]) == [True]
