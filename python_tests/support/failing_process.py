"""Fails within the group of its processes, and checks that no thread of the group is left."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from recgrela.parallel.launch import Launch
from recgrela.parallel.processes import join


def threads() -> list[str]:
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(path.read_text().strip())
        except OSError:  # it has just ended
            continue
    return sorted(names)


def main() -> None:
    before = threads()
    try:
        with join(torch.device("cpu"), Launch.read()) as processes:
            processes.wait()
            assert any("gloo" in name for name in threads())
            raise ValueError
    except ValueError:
        deadline = time.monotonic() + 60  # a thread that has been joined may be listed for a moment
        while threads() != before:
            assert time.monotonic() < deadline, threads()
            time.sleep(0.01)


if __name__ == "__main__":
    main()
