"""The command benchmarks.gpu.gpu_check, as far as it runs without a GPU."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks.gpu import gpu_check, machine, step

ROOT = Path(__file__).parents[2]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def step_result(name: str, status: str) -> dict[str, Any]:
    return {"step": name, "seconds": 1.0, "status": status, "summary": f"{name}.", "details": {}}


@no_gpu
@pytest.mark.parametrize("more", [[], ["--sanitize-target"], ["--run-step", "facts"]])
def test_without_a_gpu_the_error_names_the_cause(tmp_path: Path, more: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.gpu_check", "--out", str(tmp_path / "out"), *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check: PyTorch finds no GPU: torch 2.")
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_an_unknown_step_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        gpu_check.main(["--skip", "bild"])
    assert raised.value.code == 2
    assert "bild" in capsys.readouterr().err


# Time


def test_the_steps_fit_into_eight_minutes() -> None:
    steps, left = gpu_check.STEPS, gpu_check.TOTAL_SECONDS
    assert left < 480
    for i, each in enumerate(steps):
        limit = gpu_check.allowance(each, steps[i + 1 :], left)
        assert each.reserve <= limit <= each.limit, each.name
        left -= limit  # the step takes all of its time
    assert left >= 0
    assert gpu_check.allowance(steps[0], steps[1:], 0) == 0


def test_skipped_steps_leave_their_time() -> None:
    tests = next(each for each in gpu_check.STEPS if each.name == "tests")
    assert gpu_check.allowance(tests, [], 90) == 90
    assert gpu_check.allowance(tests, [gpu_check.Step("other", "", 50, 30)], 90) == 60


def test_every_step_has_its_function() -> None:
    assert all(callable(each.load()) for each in gpu_check.STEPS)


def test_a_command_out_of_time_is_killed() -> None:
    code, output = step.run_logged(["sh", "-c", "echo begun; exec sleep 60"], 1)
    assert (code, output) == (None, "begun")
    assert step.text_of(["sh", "-c", "echo wrong >&2; exit 3"]) == "[exit code 3: wrong]"
    assert "No such file" in step.text_of(["/nowhere/program"])


# Steps


@pytest.mark.parametrize("failing, code", [(None, 0), ("tests", 1)])
def test_a_failed_step_fails_the_check_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str | None, code: int
) -> None:
    limits = {}

    def run_in_subprocess(name: str, settings: step.Settings) -> dict[str, Any]:
        limits[name] = settings.limit
        return step_result(name, "failed" if name == failing else "passed")

    monkeypatch.setattr(gpu_check, "run_in_subprocess", run_in_subprocess)
    console = Console(file=io.StringIO(), width=200)
    settings = step.Settings(tmp_path / "new" / "out")
    assert gpu_check.check_all(settings, ["sanitizer"], console) == code
    report = json.loads((tmp_path / "new" / "out" / "gpu_check.json").read_text())
    assert report["complete"]
    statuses = {each["step"]: each["status"] for each in report["steps"]}
    assert list(statuses) == [each.name for each in gpu_check.STEPS]
    assert statuses.pop("sanitizer") == "skipped"
    assert set(limits) == set(statuses)
    assert [name for name, status in statuses.items() if status != "passed"] == ([failing] if failing else [])
    assert "gpu_check.json" in console.file.getvalue()
    assert not list(settings.out.glob(".*"))


def test_ctrl_c_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_in_subprocess(name: str, settings: step.Settings) -> dict[str, Any]:
        if name == "build":
            raise KeyboardInterrupt
        return step_result(name, "passed")

    monkeypatch.setattr(gpu_check, "run_in_subprocess", run_in_subprocess)
    assert gpu_check.check_all(step.Settings(tmp_path), [], Console(file=io.StringIO())) == 130
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert not report["complete"]
    assert [each["step"] for each in report["steps"]] == ["facts"]


def test_a_step_that_ends_early_fails_and_keeps_its_details(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    assert gpu_check.read_result(path, 3, 60)["summary"] == "ended early with exit code 3"
    path.write_text(json.dumps({"status": "running", "details": {"cases": [1]}}))
    result = gpu_check.read_result(path, None, 60)
    assert result == {"status": "failed", "summary": "did not end in 60 s", "details": {"cases": [1]}}


def test_an_error_in_a_step_is_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: step.Settings) -> Any:
        settings.save({"half": True})
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(machine, "facts", broken)
    settings = step.Settings(tmp_path)
    settings.logs.mkdir()
    gpu_check.run_in_process("facts", settings)
    result = gpu_check.read_result(settings.logs / "facts.json", 0, 60)
    assert (result["status"], result["summary"]) == ("failed", "RuntimeError: no kernel image")


@no_gpu
def test_a_step_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    settings = step.Settings(tmp_path, limit=60)
    settings.logs.mkdir()
    result = gpu_check.run_in_subprocess("facts", settings)
    assert (result["status"], result["summary"]) == ("failed", "ended early with exit code 2")
    assert "finds no GPU" in result["tail"]
    began = time.monotonic()
    result = gpu_check.run_in_subprocess("facts", step.Settings(tmp_path, limit=0.1))
    assert (result["status"], result["summary"]) == ("failed", "did not end in 0 s")
    assert time.monotonic() - began < 10
