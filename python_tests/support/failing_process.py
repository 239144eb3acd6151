"""Fails within the group of its processes, and checks that no thread of the group is left."""

from __future__ import annotations

from pathlib import Path

import torch

from recgrela.parallel.launch import Launch
from recgrela.parallel.processes import join


def threads() -> list[str]:
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def main() -> None:
    before = sorted(threads())
    try:
        with join(torch.device("cpu"), Launch.read()) as processes:
            processes.wait()
            assert any("gloo" in name for name in threads())
            raise ValueError
    except ValueError:
        assert sorted(threads()) == before, threads()


if __name__ == "__main__":
    main()
