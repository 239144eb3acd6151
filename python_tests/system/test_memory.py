"""Available memory, sizes that do not fit, and lines for a lack of memory."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recgrela.system import memory, out_of_memory
from recgrela.system.errors import ConfigError, DataError, OutOfMemory, RunError
from recgrela.system.memory import PeakMemory, available_memory, check_fits, in_gb
from recgrela.system.out_of_memory import MemoryPhase

CPU = torch.device("cpu")
PHASE = MemoryPhase("testing", "lower train.size")
GROUPS = {
    "0::/user/job": {
        "user/job/memory.max": "max",
        "user/job/memory.current": "5",
        "user/memory.max": "9000000000",
        "user/memory.current": "8000000000",
        "user/memory.stat": "anon 7\ninactive_file 200000000\nactive_file 100000000",
    },
    "4:memory:/job": {
        "memory/job/memory.limit_in_bytes": "9000000000",
        "memory/job/memory.usage_in_bytes": "8000000000",
        "memory/job/memory.stat": "total_inactive_file 200000000\ntotal_active_file 100000000",
        "memory/memory.limit_in_bytes": str(2**63 - 4096),
        "memory/memory.usage_in_bytes": "0",
        "memory/memory.stat": "total_inactive_file 0",
    },
}


@pytest.mark.parametrize("own", GROUPS)
def test_available_memory_is_the_least_of_all_limits(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_reusable", lambda: 0)
    monkeypatch.setattr(memory, "_own_limits", lambda: iter(()))
    system, groups = tmp_path / "meminfo", tmp_path / "own"
    for name, path in (("_SYSTEM", system), ("_OWN_GROUPS", groups), ("_GROUPS", tmp_path)):
        monkeypatch.setattr(memory, name, path)
    assert available_memory(CPU) is None
    system.write_text("MemTotal: 9 kB\nMemAvailable: 4000000 kB\nSwapFree: 1000 kB\nHugePages_Total: 3\n")
    assert available_memory(CPU) == 4001000 * 1024
    for name, text in GROUPS[own].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    groups.write_text(f"2:cpu,cpuacct:/\n{own}\n")
    assert available_memory(CPU) == 1_300_000_000


def test_available_memory_of_this_machine() -> None:
    found = available_memory(CPU)
    assert found is not None and 1e7 < found < 1e15


def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = memory._resident("VmSize")
    assert used is not None
    limits = {resource.RLIMIT_AS: used + 10**8}
    monkeypatch.setattr(
        memory.resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY), 0)
    )
    monkeypatch.setattr(memory, "_reusable", lambda: 0)
    found = available_memory(CPU)
    assert found is not None and found < 1.2e8


def test_sizes_that_cannot_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 2_000_000_000)
    check_fits({"weights": 1_500_000_000, "scores": 500_000_000}, CPU, "lower x")
    message = (
        r"^2.1 GB of memory are needed \(weights 1.6 GB, scores 500 MB\), but 2.0 GB are available; lower x$"
    )
    with pytest.raises(ConfigError, match=message):
        check_fits({"weights": 1_600_000_000, "scores": 500_000_000}, CPU, "lower x")
    assert in_gb(99_000_000) == "99 MB" and in_gb(5000) == "5 kB" and in_gb(1.5e12) == "1,500.0 GB"


def real_torch() -> None:
    torch.empty(1 << 60)


def real_numpy() -> None:
    np.empty(1 << 58)


def real_python() -> None:
    bytearray(1 << 60)


def real_arrow() -> None:
    pa.allocate_buffer(1 << 60)


@pytest.mark.parametrize(
    ("fail", "asked"),
    [
        (real_torch, r": 4,611,686,018.4 GB more were asked for, and .* are available"),
        (real_numpy, r": 2,305,843,009.2 GB more were asked for, and .* are available"),
        (real_python, ""),
        (real_arrow, r"(: .* more were asked for, and .* are available)?"),
    ],
)
def test_real_lacks_are_one_line(fail: Callable[[], None], asked: str) -> None:
    with pytest.raises(OutOfMemory, match=rf"^out of memory while testing{asked}; lower train.size$"):
        PHASE(fail)()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: not enough memory: you"),
        RuntimeError("can't start new thread"),
        ImportError("libx.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_other_lacks(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match=r"^out of memory while testing.*; lower train.size$"), PHASE:
        raise error


def test_the_innermost_context_names_the_phase_and_sees_causes() -> None:
    with pytest.raises(OutOfMemory, match="while reading"), PHASE, MemoryPhase("reading", "x"):
        try:
            raise MemoryError
        except MemoryError as error:
            raise DataError("a.csv: cannot be read") from error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("out of memory"),
        IndexError("cannot allocate row 12"),
        FileNotFoundError(errno.ENOENT, "No such file", "out of memory.csv"),
        DataError("out of memory.csv"),
        RunError("x"),
        SystemExit(3),
    ],
)
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, PHASE:
        raise error
    assert caught.value is error


def test_an_import_fails_for_lack_of_memory_only_if_little_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, kind in ((1 << 20, OutOfMemory), (1 << 30, ImportError)):
        monkeypatch.setattr(out_of_memory, "available_memory", lambda device, found=available: found)
        with pytest.raises(kind), PHASE:
            raise ImportError("cannot import name 'x' from 'y'")


def test_the_tensors_of_failed_calls_are_freed() -> None:
    alive: list[object] = []

    class Tracked:
        def __init__(self) -> None:
            alive.append(None)

        def __del__(self) -> None:
            alive.pop()

    def work() -> None:
        held = Tracked()
        assert held
        raise MemoryError

    with pytest.raises(OutOfMemory), PHASE:
        work()
    assert not alive


@pytest.mark.parametrize(("peak", "expected"), [(130, 30), (96, 0), (None, None)])
def test_peak_memory_is_never_negative(
    peak: int | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux may record a peak below the memory at the beginning."""
    monkeypatch.setattr(memory, "_resident", {"VmRSS": 100, "VmHWM": peak}.get)
    assert PeakMemory().read(CPU) == expected
