"""Measures peers in processes of their own.

A peer's first call may compile or tune kernels for minutes, hang, or crash. A signal cannot stop a call into
C, so each family of peers runs in a process of its own. The process measures case after case, and is killed
when a peer exceeds its limit.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.gpu.measure import (
    Call,
    Samples,
    expected_results,
    figures,
    is_cuda,
    make_sets,
    measure,
    peak_bytes,
)
from benchmarks.gpu.packages import describe
from benchmarks.gpu.peers import Family, Peer
from benchmarks.timing import OURS
from python_tests.cases import Case
from python_tests.cases.case import gradients
from python_tests.cases.compare import PEER_TOLERANCES, errors_of, fault_of

START_SECONDS = 60.0  # a process imports torch when it starts
MAX_KILLED = 2  # a family is given up after its process was killed this often

Record = dict[str, Any]


def missed(why: str) -> Record:
    """The record of a peer whose measurement did not finish."""
    return {"note": why, "missed": True}


def our_call(case: Case) -> Call:
    return lambda x: case.call(x)["y"]


def compare_times(peer: Samples, ours: Samples) -> Record:
    """Times of a peer divided by ours."""
    pairs = list(zip(peer.medians(), ours.medians(), strict=True))
    ratios = {f"{way}_ratio": a / b for way, (a, b) in zip(("forward", "backward"), pairs, strict=True)}
    return ratios | {"ratio": sum(peer.medians()) / sum(ours.medians())}


def measure_peer(case: Case, peer: Peer, device: str, bandwidth: float, rounds: int) -> Record:
    """A peer's error, times, ratios to our times, and memory; or a note that says why they are missing."""
    record: Record = {"note": peer.note} if peer.note else {}
    if peer.call is None:
        return record
    try:
        sets = make_sets(case, device)
        got = gradients({"y": peer.call(sets[0])}, sets[0])
        errors = errors_of(expected_results(case, device), got)
        del got
        record["max_error"] = max(error.norm for error in errors.values())
        if fault := fault_of(errors, PEER_TOLERANCES[case.dtype]):
            return record | {"note": f"wrong: {fault}"}
        samples = measure({OURS: our_call(case), peer.name: peer.call}, sets, rounds)
        record |= figures(case, samples[peer.name], bandwidth)
        record |= compare_times(samples[peer.name], samples[OURS])
        return record | {"peak_bytes": peak_bytes(peer.call, sets[0])}
    except Exception as error:  # any error of a peer is its result
        return record | {"note": describe(error)}


def serve(connection: Connection, family: Family, device: str, bandwidth: float) -> None:
    """Answers requests (case, names or None, rounds) until the other side closes.

    The answers are ("begin", name) and ("record", name, record) for each peer, then ("end",).
    """
    connection.send(("ready",))
    while True:
        try:
            case, wanted, rounds = connection.recv()
        except EOFError:
            return
        for peer in family.peers(case):
            if wanted is None or peer.name in wanted:
                connection.send(("begin", peer.name))
                connection.send(("record", peer.name, measure_peer(case, peer, device, bandwidth, rounds)))
                if is_cuda(device):  # after a fault on the device this raises, and a new process starts
                    torch.cuda.synchronize()
                    torch.cuda.empty_cache()
        connection.send(("end",))


class Worker:
    """The process of one family of peers. It starts with the first case, and again after it was killed."""

    def __init__(self, family: Family, device: str, bandwidth: float) -> None:
        self.family, self.device, self.bandwidth = family, device, bandwidth
        self.process: Any = None
        self.connection: Any = None
        self.killed = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kills the process, the only way to end a call into C."""
        if self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.join(10)
            self.process = None

    def receive(self, seconds: float) -> tuple[Any, ...] | None:
        """The next answer; None if it does not come in `seconds` or the process has ended."""
        try:
            return self.connection.recv() if self.connection.poll(seconds) else None
        except (EOFError, ConnectionError):
            return None

    def start(self, seconds: float) -> bool:
        """Starts the process unless it is running; reports whether it is ready in time."""
        if self.process is not None:
            return True
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.family, self.device, self.bandwidth)
        self.process = context.Process(target=serve, args=arguments)
        self.process.start()
        theirs.close()
        if self.receive(min(seconds, START_SECONDS)) is not None:
            return True
        self.fail()
        return False

    def fail(self) -> str:
        """Kills the process; returns a note if it had ended by itself."""
        self.process.join(0.2)
        code = self.process.exitcode
        self.stop()
        self.killed += 1
        return "" if code is None else f"its process ended with exit code {code}"

    def records(
        self, case: Case, wanted: set[str] | None, rounds: int, seconds: float
    ) -> Iterator[tuple[str, Record]]:
        """Yields the name and record of each peer of a case as soon as it is measured.

        Args:
            wanted: names of the peers to measure; None measures all.
            seconds: time left for all of them. A peer also has the family's limit.
        """
        name, deadline = self.family.name, time.monotonic() + seconds
        if not self.family.is_installed():
            yield name, {"note": "not installed"}
            return
        if self.killed >= MAX_KILLED:
            yield name, missed(f"given up after {MAX_KILLED} calls that did not end")
            return
        if not self.start(seconds):
            yield name, missed("its process did not start")
            return
        with suppress(ConnectionError):  # receive() notices that the process has ended
            self.connection.send((case, wanted, rounds))
        while True:
            limit = max(0.0, min(self.family.seconds, deadline - time.monotonic()))
            answer = self.receive(limit)
            if answer is None:
                yield name, missed(self.fail() or f"took more than {limit:.0f} s")
                return
            kind, *content = answer
            if kind == "begin":
                (name,) = content
            elif kind == "record":
                yield content[0], content[1]
                name = self.family.name
            else:
                return
