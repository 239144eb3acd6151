"""Groups of processes, and how they end."""

from __future__ import annotations

import sys

import pytest

from python_tests.support.processes import start, wait


@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads of a process from /proc")
def test_no_thread_of_a_group_outlives_an_error() -> None:
    """A thread of gloo that frees a tensor while Python ends aborts the process."""
    for result in wait(start(2, [sys.executable, "-m", "python_tests.support.failing_process"])):
        assert result.returncode == 0, result.stderr
