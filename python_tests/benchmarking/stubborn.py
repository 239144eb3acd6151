"""Peers that do not end, for the processes of test_bench.py."""

from __future__ import annotations

import ctypes
import os
import signal

import torch
from torch import Tensor

from benchmarks.gpu.peers import Peer, eager_peers
from python_tests.cases import Case, Operands


def sleep(x: Operands) -> Tensor:
    """Ignores signals and sleeps in C, where Python cannot run a signal handler."""
    for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.PyDLL(None).sleep(600)
    raise AssertionError("unreachable")


def leave(x: Operands) -> Tensor:
    """Ends the process like a crash in C."""
    os._exit(7)


def out_of_memory(x: Operands) -> Tensor:
    raise torch.OutOfMemoryError("tried to allocate\n 99 GiB")


def sleepers(case: Case) -> list[Peer]:
    return [*eager_peers(case)[:1], Peer("sleeper", sleep), Peer("never begun", sleep)]


def leavers(case: Case) -> list[Peer]:
    return [Peer("leaver", leave)]


def failures(case: Case) -> list[Peer]:
    wrong = eager_peers(case)[0].call
    assert wrong is not None
    return [Peer("wrong", lambda x: 2 * wrong(x)), Peer("large", out_of_memory), Peer("absent", None, "why")]
