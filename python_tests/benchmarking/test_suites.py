"""The steps of gpu_check that run tests, compute-sanitizer and a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import numerics, suites, training
from benchmarks.gpu.step import Settings
from python_tests.cases import CASES, GatedRelaCase, SelectiveScanCase
from python_tests.cases.case import HALF_DTYPES
from python_tests.cases.compare import TOLERANCES, fault_of


def junit(folder: Path, **counts: int) -> Path:
    attributes = " ".join(f'{name}="{count}"' for name, count in counts.items())
    path = folder / "tests.xml"
    path.write_text(f"<testsuites><testsuite {attributes}></testsuite></testsuites>")
    return path


def test_counts_of_tests(tmp_path: Path) -> None:
    counts = suites.read_junit(junit(tmp_path, tests=10, failures=1, errors=2, skipped=3))
    assert counts == {"passed": 4, "failed": 1, "errors": 2, "skipped": 3}
    assert suites.judge_tests(counts, 1) == ("failed", "4 passed, 1 failed, 2 errors, 3 skipped")
    fine = suites.read_junit(junit(tmp_path, tests=10, failures=0, errors=0, skipped=3))
    assert suites.judge_tests(fine, 0)[0] == "passed"
    none = suites.read_junit(junit(tmp_path, tests=3, failures=0, errors=0, skipped=3))
    status, summary = suites.judge_tests(none, 0)
    assert status == "failed" and "no test for CUDA ran" in summary


CLEAN = "sanitize target: 78 forward and backward passes\n========= "
MEMCHECK, RACECHECK = (
    CLEAN + "ERROR SUMMARY: 0 errors",
    CLEAN + "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
)


@pytest.mark.parametrize(
    "tool, code, output, fault",
    [
        ("memcheck", 0, MEMCHECK, ""),
        ("racecheck", 0, RACECHECK, ""),
        ("memcheck", 9, MEMCHECK.replace("0 errors", "12 errors"), "12 found"),
        ("racecheck", 0, RACECHECK.replace("0 hazards", "1 hazard"), "1 found"),
        ("memcheck", None, "", "out of time"),
        ("memcheck", 0, MEMCHECK.removeprefix(CLEAN), "ended early"),
        ("memcheck", 1, "Internal error", "no summary"),
        ("memcheck", 5, MEMCHECK, "exit code 5"),
    ],
)
def test_the_sanitizers_output_is_judged(tool: str, code: int | None, output: str, fault: str) -> None:
    said = suites.judge_sanitizer(tool, code, output)
    assert fault in said and bool(fault) == bool(said)


def test_the_step_is_skipped_without_a_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "find_sanitizer", lambda: None)
    status, summary, _ = suites.sanitizer(Settings(tmp_path))
    assert (status, summary) == ("skipped", "compute-sanitizer is not installed")


def test_the_sanitizer_is_found_in_cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{MEMCHECK}'\necho '{RACECHECK}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert suites.find_sanitizer() == str(program)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    status, summary, details = suites.sanitizer(Settings(tmp_path))
    assert (status, summary) == ("passed", "memcheck: clean, racecheck: clean")
    assert details["racecheck"]["tail"]


def test_the_sanitizers_program_covers_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    single = [(op, dtype) for op in CASES for dtype in op.dtypes if dtype not in HALF_DTYPES]
    few = sum(len(list(op.small(dtype))) for op, dtype in single)
    assert numerics.sanitize_target("cpu", (torch.float32,)) == few
    assert capsys.readouterr().out.startswith(suites.SANITIZED)
    small = [case for op in CASES for dtype in op.dtypes for case in op.small(dtype)]
    rela = [case for case in small if isinstance(case, GatedRelaCase)]
    kinds = {(case.dtype, case.causal, case.head_dim, max(case.lengths) > 256) for case in rela}
    assert len(kinds) == 3 * 2 * 5 * 2
    selective = [case for case in small if isinstance(case, SelectiveScanCase)]
    assert len({(case.dtype, case.num_states) for case in selective}) == 3 * 6


def test_results_are_compared_with_wide_kernels() -> None:
    for case in numerics.every_variant(((20,) * 3, (1, 33, 0, 5)), (torch.float32,)):
        assert not fault_of(numerics.compare_with_cpu(case, "cpu"), TOLERANCES[case.dtype]), str(case)


def epoch(loss: float) -> dict[str, Any]:
    return {"kind": "epoch", "loss": loss, "targets_per_second": 1000.0}


def test_training_must_learn_and_agree_with_the_cpu() -> None:
    judge = training.judge
    assert judge([epoch(6.0), epoch(5.0)], {"on the CPU": [epoch(6.1)]})[0] == "passed"
    assert "1,000 targets/s" in judge([epoch(6.0), epoch(5.0)], {})[1]
    assert judge([epoch(5.0), epoch(6.0)], {})[0] == "failed"
    assert judge([epoch(6.0), epoch(float("nan"))], {})[0] == "failed"
    status, said = judge([epoch(6.0), epoch(5.0)], {"on the CPU": [epoch(7.0)], "twice": [epoch(6.0)]})
    assert status == "failed" and "epoch 1 on the CPU 7.0000 (14.3% away), 1,000 targets/s" in said


def test_training_runs_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU takes the place of the GPU; a run that fails there fails the step."""
    whole = training.train_once
    calls = []

    def on_cpu(device: str, epochs: int, seconds: float, **more: object) -> Any:
        calls.append((device, epochs, more))
        graphs = {"cuda_graphs": "true"} if "cuda_graphs" in more else {}  # impossible there
        return whole("cpu", epochs, seconds, **graphs, batch_size=1 << 20)  # an epoch is a step

    monkeypatch.setattr(training, "train_once", on_cpu)
    status, said, _ = training.training(Settings(tmp_path, limit=200, quick=True))
    assert calls == [("cuda", 2, {}), ("cuda", 2, {"cuda_graphs": "false"})]
    assert status == "failed" and "without CUDA graphs: exit code 2" in said and "needs a GPU" in said
