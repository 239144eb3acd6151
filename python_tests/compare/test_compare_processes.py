"""A comparison whose runs several processes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.compare.comparison import REQUESTED, folders, table
from python_tests.support.processes import run_commands
from recgrela.compare.runner import child_environment
from recgrela.parallel.launch import Launch


def test_two_processes_share_the_runs_and_make_the_same_table(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = run_commands(2, [["compare.__main__", *REQUESTED, f"--out={out}"]])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    for run, expected in zip(folders(out).values(), folders(whole).values(), strict=True):
        ours, theirs = run.read_results(), expected.read_results()
        assert (ours["valid"], ours["test"]) == (theirs["valid"], theirs["test"])
    ours, theirs = table(out), table(whole)
    for label in theirs:
        for column in theirs[label]:
            if "NDCG" in column or "HR" in column:
                assert ours[label][column] == theirs[label][column]
    numbers = [text.count(" of 4): ") for text in (first.stdout, second.stdout)]
    assert sum(numbers) == 4 and min(numbers) > 0  # each run once, and each process some
    assert "written: " in first.stdout and "written: " not in second.stdout


@pytest.mark.parametrize(
    ("visible", "local_rank", "expected"), [(None, 1, "1"), ("3,5", 0, "3"), ("3,5", 1, "5")]
)
def test_each_process_gives_its_gpu_to_its_runs(visible: str | None, local_rank: int, expected: str) -> None:
    environ = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "PATH": "/bin"}
    if visible is not None:
        environ["CUDA_VISIBLE_DEVICES"] = visible
    child = child_environment(environ, Launch(rank=1, world=2, local_rank=local_rank, local_world=2))
    assert child == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": expected}
