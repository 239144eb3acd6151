"""Servers in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from python_tests.support.project import ROOT

START_SECONDS = 120  # of a machine that does much else


class Server:
    """`python -m recgrela.serve` with a store, on a free port.

    Attributes:
        url: where it listens.
        log: the file of its stderr.
    """

    def __init__(self, run: Path, store: Path, *options: str, **environment: str) -> None:
        self.log = store.with_name(f"{time.monotonic_ns()}.log")
        command = [sys.executable, "-m", "recgrela.serve", str(run), "--store", str(store), "--port", "0"]
        with self.log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command, "--threads", "1", "--device", "cpu", *options],
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )
        self.url = ""
        deadline = time.monotonic() + START_SECONDS
        while not self.url:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
            found = re.search(r"serves (http://\S+)", self.log.read_text())
            self.url = found[1] if found else ""
        self.client = httpx.Client(base_url=self.url, timeout=START_SECONDS)

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Any:
        return self.client.post(path, json=body, **options)

    def kill(self) -> None:
        """Ends the process at once, as a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stops the server and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running(run: Path, store: Path, *options: str, **environment: str) -> Iterator[Server]:
    """A server that is killed in the end if it still runs."""
    server = Server(run, store, *options, **environment)
    try:
        yield server
    finally:
        server.client.close()
        server.kill()
