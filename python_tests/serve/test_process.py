"""Faults of real servers: killed, stopped, on a full disk, with a new checkpoint, two on one store."""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from python_tests.serve.test_reload import retrain
from python_tests.support.server import Server, running
from python_tests.support.serving import whole_state
from recgrela.inference.recommender import Recommender
from recgrela.serve.engine import Engine
from recgrela.store import Store, open_store

TOKEN = "0123456789abcdef0123456789abcdef"
USERS = [f"user {i}" for i in range(4)]


def recommender_of(run: Path) -> Recommender:
    return Recommender.load(run, checkpoint="best", device="cpu")


def assert_states_equal_a_rebuild(run: Path, store: Store) -> None:
    """The stored states, before anything is computed again."""
    recommender = recommender_of(run)
    engine = Engine(recommender, store)
    users = sorted(store.users())
    for log in store.load(engine.key, users):
        assert log.state is not None
    hidden, lengths = engine.folder.hidden(users)
    for user, row, length in zip(users, hidden, lengths.tolist(), strict=True):
        expected = whole_state(recommender, store, user)
        assert length == int(expected["position"][0])
        torch.testing.assert_close(row, expected["hidden"][0], rtol=1e-3, atol=1e-4)


class Load:
    """Clients that add events until they are stopped or the server has gone; `acknowledged` are their ids."""

    def __init__(self, server: Server, items: list[str], name: str, clients: int = 4) -> None:
        self.acknowledged: list[tuple[str, str]] = []
        self.failed: list[Any] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(server, items, f"{name} {number}", number))
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, server: Server, items: list[str], name: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        options = {"base_url": server.url, "headers": server.client.headers, "timeout": 60}
        with httpx.Client(**options) as client, suppress(httpx.TransportError):
            for count in range(10_000):
                if self._stop.is_set():
                    return
                user, id = USERS[rng.integers(len(USERS))], f"{name} {count}"
                # Some are out of order.
                moment = time.time() - rng.integers(0, 2) * rng.random()
                event = {"user": user, "item": items[rng.integers(len(items))], "time": moment, "id": id}
                answer = client.post("/events", json=event)
                if answer.status_code == 200:
                    self.acknowledged.append((user, id))
                else:
                    self.failed.append(answer.text)
                answer = client.get(f"/users/{user}/recommendations")
                if answer.status_code != 200:
                    self.failed.append(answer.text)

    def wait(self, number: int) -> None:
        """Waits until so many more events are acknowledged."""
        wanted = len(self.acknowledged) + number
        wait_for(lambda: len(self.acknowledged) >= wanted)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def wait_for(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metric(server: Server, name: str) -> float:
    """The value of a metric."""
    text = server.get("/metrics").text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_a_server_that_is_killed_and_one_that_is_stopped(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    items = recommender_of(run).item_ids
    with running(run, path) as server:
        load = Load(server, items, "before")
        load.wait(60)
        server.kill()
        load.stop()
    assert load.acknowledged and not load.failed
    with running(run, path) as server:
        for user in USERS:  # states that the kill prevented are computed by the first request
            assert server.get(f"/users/{user}/recommendations").status_code == 200
        after = Load(server, items, "after")
        after.wait(30)
        assert server.stop() == 0
        after.stop()
        assert not after.failed and "stopped" in server.log.read_text()
    with open_store(path) as store:
        stored = {(user, event.id) for user in store.users() for event in store.history(user)}
        assert {*load.acknowledged, *after.acknowledged} <= stored
        assert_states_equal_a_rebuild(run, store)


def test_a_full_disk_and_a_new_checkpoint_under_load(run: Path, tmp_path: Path) -> None:
    path, token = tmp_path / "store.sqlite", tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    items = recommender_of(run).item_ids
    options = ("--token_file", str(token), "--checkpoint", "best", "--poll", "0.05")
    with running(run, path, *options) as server:
        server.client.headers["authorization"] = f"Bearer {TOKEN}"
        event = {"user": "a", "item": items[0]}
        assert server.post("/events", event).status_code == 200
        assert server.get("/items", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert TOKEN not in server.log.read_text()

        # A limit on file sizes fails writes that let a file grow, as a full disk does.
        largest = max(file.stat().st_size for file in tmp_path.glob("store.sqlite*"))
        before = resource.prlimit(
            server.process.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY)
        )
        many = [{"user": "a", "item": items[2], "id": f"{i}".rjust(250)} for i in range(1000)]
        refused = server.post("/events", many)
        assert refused.status_code in (503, 507) and "error" in refused.json()
        assert server.get("/users/a/recommendations").status_code == 200
        assert [event["item"] for event in server.get("/users/a/history").json()["events"]] == items[:1]
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
        assert server.post("/events", {"user": "a", "item": items[1]}).status_code == 200
        assert server.get("/users/a/recommendations").json()["length"] == 2

        # A new checkpoint is taken over without a failed request.
        old = server.get("/health").json()["model"]
        load = Load(server, items, "load", 2)
        load.wait(10)
        retrain(run, 1)
        wait_for(lambda: metric(server, 'recgrela_reloads_total{outcome="taken"}') == 1)
        load.wait(10)
        assert server.get("/health").json()["model"] != old
        # A damaged one is refused.
        best = run / "best.safetensors"
        content = best.read_bytes()
        best.write_bytes(content[:1000])
        wait_for(lambda: metric(server, 'recgrela_reloads_total{outcome="refused"}') == 1)
        best.write_bytes(content)
        assert server.client.post("/reload").status_code == 202
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: metric(server, 'recgrela_reloads_total{outcome="unchanged"}') >= 1)
        load.wait(10)
        load.stop()
        assert not load.failed and "refused" in server.log.read_text()
        expected = server.get("/users/user 0/recommendations").json()["items"]

        # A second server on the same store sees the same events.
        with running(run, path, "--checkpoint", "best") as second:
            assert second.get("/users/user 0/recommendations").json()["items"] == expected
            both = [Load(second, items, "second", 2), Load(server, items, "first", 2)]
            for one in both:
                one.wait(20)
            for one in both:
                one.stop()
                assert not one.failed
            for user in USERS:
                answers = [one.get(f"/users/{user}/recommendations").json() for one in (server, second)]
                assert answers[0] == answers[1]
            assert second.stop() == 0
        assert server.stop() == 0
    with open_store(path) as store:
        stored = {(user, event.id) for user in store.users() for event in store.history(user)}
        assert {*load.acknowledged, *both[0].acknowledged, *both[1].acknowledged} <= stored
        assert_states_equal_a_rebuild(run, store)
