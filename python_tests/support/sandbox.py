"""A process that calls functions for tests, so that a crash, a hang or a lack of memory is an outcome."""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 60.0  # of a call
MEMORY = 2 << 30  # bytes that a call may allocate


class Sandbox:
    """Calls functions in a child process, which is started anew after a crash.

    The functions are named "module:function" and return plain values.
    """

    def __init__(self, preload: str) -> None:
        self._preload = preload
        self._process: Any = None
        self._connection: Any = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def call(self, function: str, *arguments: Any) -> Any:
        """The function's value. Raises AssertionError if it raises, crashes, hangs or lacks memory."""
        if self._process is None:
            self._start()
        self._connection.send((function, arguments))
        if not self._connection.poll(SECONDS):
            self._stop()
            raise AssertionError(f"{function} ran longer than {SECONDS:.0f} s")
        try:
            ok, value = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._stop()
            raise AssertionError(f"{function} ended the process with exit code {code}") from None
        assert ok, value
        return value

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._preload), daemon=True)
        self._process.start()
        theirs.close()
        assert self._connection.poll(120) and self._connection.recv() == "ready"

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = None


def _serve(connection: Connection, preload: str) -> None:
    import torch

    torch.set_num_threads(1)
    importlib.import_module(preload)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send("ready")
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        module, _, name = function.partition(":")
        try:
            answer = (True, getattr(importlib.import_module(module), name)(*arguments))
        except BaseException:  # every exception is an outcome that the test reports
            answer = (False, traceback.format_exc())
        connection.send(answer)
