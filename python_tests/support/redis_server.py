"""A Redis server of a test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer:
    """A server on a free port of the loopback interface, with its data in a folder."""

    def __init__(self, folder: Path, options: Sequence[str] = DURABLE) -> None:
        pytest.importorskip("redis")
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed")
        self.folder, self._program, self._options = folder, program, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        address = ["--bind", "127.0.0.1", "--port", str(self.port)]
        command = [self._program, *address, "--save", "", *self._options]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.stop()
                raise RuntimeError(f"redis-server does not answer on port {self.port}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End the server as by kill -9."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(5) in (b"+PONG", b"-NOAU")  # the second one asks for a password
        except OSError:
            return False
