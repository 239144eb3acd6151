"""benchmarks/gpu/gpu_check.py as far as it goes without a GPU."""

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
from torch import Tensor

from python_tests.support.packages import install

ROOT = Path(__file__).parents[2]


def shown(steps: list[dict[str, Any]], gpu: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    gpu.check.show(steps, console)
    return console.file.getvalue()


# No GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("more", [[], ["--sanitize-target"], ["--run-step", "facts"]])
def test_without_a_gpu_it_says_so(tmp_path: Path, more: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.gpu_check", "--out", str(tmp_path / "out"), *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check: PyTorch sees no GPU: torch 2.")
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_an_unknown_step_is_refused(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        gpu.check.main(["--skip", "bild"])
    assert raised.value.code == 2
    assert "bild" in capsys.readouterr().err


# Sizes and time


def test_the_floor_is_that_of_the_design(gpu: Any) -> None:
    fp32, bf16 = (gpu.ops.RelaCase(2048, 200, 64, dtype) for dtype in ("fp32", "bf16"))
    assert (fp32.forward_bytes, fp32.backward_bytes) == (5 * 104_857_600, 9 * 104_857_600)
    assert (bf16.forward_bytes, bf16.backward_bytes) == (5 * 52_428_800, 9 * 52_428_800)
    conv = gpu.ops.ConvCase(2048, 200, 64, "fp32")
    assert (conv.forward_bytes, conv.backward_bytes) == (2 * 104_857_600, 3 * 104_857_600)


def test_figures_follow_from_bytes_and_seconds(gpu: Any) -> None:
    case = gpu.ops.RelaCase(2048, 200, 64, "fp32")
    samples = gpu.bench.Samples([244e-6, 1.0, 1e-9], [440e-6] * 3, [1e-5] * 3)
    found = gpu.bench.figures(case, samples, 4.3e12)
    assert found["forward_us"] == pytest.approx(244)
    assert found["forward_gb_s"] == pytest.approx(5 * 104_857_600 / 244e-6 / 1e9)
    assert found["forward_share"] == pytest.approx(0.5, abs=0.01)  # the design's 122 us
    assert found["backward_share"] == pytest.approx(0.5, abs=0.01)
    assert found["host_us"] == pytest.approx(10)


@pytest.mark.parametrize("cache", [0, 10 << 20, 60 << 20, 1 << 30])
def test_sets_of_operands_exceed_twice_the_cache(gpu: Any, cache: int) -> None:
    case = gpu.ops.RelaCase(256, 200, 64, "bf16")
    sets = gpu.bench.number_of_sets(case, cache)
    assert 2 <= sets <= gpu.bench.MEMORY_SETS
    assert sets * case.forward_bytes > 2 * cache or sets == gpu.bench.MEMORY_SETS
    largest = gpu.ops.RelaCase(2048, 200, 64, "fp32")
    assert gpu.bench.number_of_sets(largest, 60 << 20) * largest.forward_bytes > 2 * (60 << 20)


def test_every_planned_case_exceeds_twice_a_large_cache(gpu: Any) -> None:
    for plan in gpu.bench.plans(quick=False):
        sets = gpu.bench.number_of_sets(plan.case, 60 << 20)
        assert sets * plan.case.forward_bytes > 2 * (60 << 20)


def test_the_steps_fit_into_eight_minutes(gpu: Any) -> None:
    steps, left = gpu.check.STEPS, gpu.check.TOTAL_SECONDS
    assert left < 480
    for i, step in enumerate(steps):
        limit = gpu.check.allowance(step, steps[i + 1 :], left)
        assert step.reserve <= limit <= step.limit, step.name
        left -= limit  # each takes all that it may
    assert left >= 0
    assert gpu.check.allowance(steps[0], steps[1:], 0) == 0


def test_skipped_steps_leave_their_time(gpu: Any) -> None:
    tests = next(step for step in gpu.check.STEPS if step.name == "tests")
    assert gpu.check.allowance(tests, [], 90) == 90
    assert gpu.check.allowance(tests, [gpu.check.Step("other", "", 50, 30)], 90) == 60


def test_every_step_has_its_function(gpu: Any) -> None:
    assert all(callable(step.load()) for step in gpu.check.STEPS)


# Report


def bench_details() -> dict[str, Any]:
    ours = {f"{way}_{key}": 10.0 for way in ("forward", "backward") for key in ("us", "gb_s")}
    ours |= {"forward_share": 0.75, "backward_share": 0.5, "host_us": 1.0, "peak_bytes": 3_000_000}
    eager = {"ratio": 7.0, "forward_ratio": 6.25, "backward_ratio": 8.5, "peak_bytes": 9_000_000}
    peers = {
        "eager causal_masked": {"note": "OutOfMemoryError: no [memory]"},
        "eager causal_chunked": eager,
        "torch.compile": {"note": "TimeoutError: took more than 30 s"},
        "fla": {"note": "not installed"},
    }
    good = {"case": "good", "status": "passed", "ours": ours, "peers": peers}
    good["faster_eager"] = "eager causal_chunked"
    bad = {"case": "bad", "status": "failed", "fault": "y off by nan", "peers": {}}
    late = {"case": "late", "status": "not run", "fault": "no time left", "peers": {}}
    return {"copy_gb_s": 4300.0, "l2_bytes": 1, "cases": [good, bad, late]}


def step_result(name: str, status: str = "passed", **more: Any) -> dict[str, Any]:
    return {"step": name, "seconds": 1.0, "status": status, "summary": f"{name}.", "details": {}} | more


def test_the_tables_show_everything(gpu: Any) -> None:
    steps = [
        step_result("facts"),
        step_result("build", "failed", summary="exit [code] 1", tail="error: [no] such file"),
        step_result("sanitizer", "skipped", summary="compute-sanitizer is not installed"),
        step_result("benchmarks", "failed", details=bench_details()),
    ]
    text = " ".join(shown(steps, gpu).replace("│", " ").replace("┃", " ").split())
    for part in (
        "exit [code] 1",
        "error: [no] such file",
        "compute-sanitizer is not installed",
        "10 / 10",
        "75 / 50 %",
        "6.25 / 8.50",
        "causal_chunked",
        "3 (eager 9)",
        "fla: not installed",
        "failed: y off by nan",
        "4,300 GB/s",
    ):
        assert part in text, part


@pytest.mark.parametrize("failing, code", [(None, 0), ("tests", 1)])
def test_a_failed_step_fails_the_check_and_stops_nothing(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str | None, code: int
) -> None:
    limits = {}

    def run_apart(name: str, settings: Any) -> dict[str, Any]:
        limits[name] = settings.limit
        return step_result(name, "failed" if name == failing else "passed")

    monkeypatch.setattr(gpu.check, "run_apart", run_apart)
    console = Console(file=io.StringIO(), width=200)
    settings = gpu.steps.Settings(tmp_path / "new" / "out")
    assert gpu.check.check_all(settings, ["sanitizer"], console) == code
    report = json.loads((tmp_path / "new" / "out" / "gpu_check.json").read_text())
    assert report["complete"]
    statuses = {step["step"]: step["status"] for step in report["steps"]}
    assert list(statuses) == [step.name for step in gpu.check.STEPS]
    assert statuses.pop("sanitizer") == "skipped"
    assert set(limits) == set(statuses)
    assert [name for name, status in statuses.items() if status != "passed"] == ([failing] if failing else [])
    assert "gpu_check.json" in console.file.getvalue()
    assert not list(settings.out.glob(".*"))


def test_ctrl_c_leaves_a_report(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_apart(name: str, settings: Any) -> dict[str, Any]:
        if name == "build":
            raise KeyboardInterrupt
        return step_result(name)

    monkeypatch.setattr(gpu.check, "run_apart", run_apart)
    assert gpu.check.check_all(gpu.steps.Settings(tmp_path), [], Console(file=io.StringIO())) == 130
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert not report["complete"]
    assert [step["step"] for step in report["steps"]] == ["facts"]


def test_a_report_is_replaced_whole_or_not_at_all(gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "gpu_check.json"
    gpu.check.write_json(path, {"a": 1})
    circle: dict[str, Any] = {}
    circle["self"] = circle
    with pytest.raises(ValueError):
        gpu.check.write_json(path, circle)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_step_that_breaks_off_fails_and_keeps_what_it_found(gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    assert gpu.check.read_result(path, 3, 60)["summary"] == "ended early with exit code 3"
    path.write_text(json.dumps({"status": "running", "details": {"cases": [1]}}))
    result = gpu.check.read_result(path, None, 60)
    assert result == {"status": "failed", "summary": "did not end in 60 s", "details": {"cases": [1]}}


def test_an_error_in_a_step_is_its_result(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: Any) -> Any:
        settings.save({"half": True})
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu.steps, "facts", broken)
    settings = gpu.steps.Settings(tmp_path)
    settings.logs.mkdir()
    gpu.check.run_here("facts", settings)
    result = gpu.check.read_result(settings.logs / "facts.json", 0, 60)
    assert (result["status"], result["summary"]) == ("failed", "RuntimeError: no kernel image")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_step_runs_in_a_process_of_its_own(gpu: Any, tmp_path: Path) -> None:
    settings = gpu.steps.Settings(tmp_path, limit=60)
    settings.logs.mkdir()
    result = gpu.check.run_apart("facts", settings)
    assert (result["status"], result["summary"]) == ("failed", "ended early with exit code 2")
    assert "sees no GPU" in result["tail"]
    began = time.monotonic()
    result = gpu.check.run_apart("facts", gpu.steps.Settings(tmp_path, limit=0.1))
    assert (result["status"], result["summary"]) == ("failed", "did not end in 0 s")
    assert time.monotonic() - began < 10


# Judgements


def junit(folder: Path, **counts: int) -> Path:
    attributes = " ".join(f'{name}="{count}"' for name, count in counts.items())
    path = folder / "tests.xml"
    path.write_text(f"<testsuites><testsuite {attributes}></testsuite></testsuites>")
    return path


def test_counts_of_tests(gpu: Any, tmp_path: Path) -> None:
    counts = gpu.steps.read_junit(junit(tmp_path, tests=10, failures=1, errors=2, skipped=3))
    assert counts == {"passed": 4, "failed": 1, "errors": 2, "skipped": 3}
    assert gpu.steps.judge_tests(counts, 1) == ("failed", "4 passed, 1 failed, 2 errors, 3 skipped")
    fine = gpu.steps.read_junit(junit(tmp_path, tests=10, failures=0, errors=0, skipped=3))
    assert gpu.steps.judge_tests(fine, 0)[0] == "passed"
    none = gpu.steps.read_junit(junit(tmp_path, tests=3, failures=0, errors=0, skipped=3))
    status, summary = gpu.steps.judge_tests(none, 0)
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
        ("memcheck", 0, MEMCHECK.removeprefix(CLEAN), "did not come to its end"),
        ("memcheck", 1, "Internal error", "no summary"),
        ("memcheck", 5, MEMCHECK, "exit code 5"),
    ],
)
def test_what_the_sanitizer_said(gpu: Any, tool: str, code: int | None, output: str, fault: str) -> None:
    said = gpu.steps.judge_sanitizer(tool, code, output)
    assert fault in said and bool(fault) == bool(said)


def test_no_sanitizer_is_a_skipped_step(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.steps, "find_sanitizer", lambda: None)
    status, summary, _ = gpu.steps.sanitizer(gpu.steps.Settings(tmp_path))
    assert (status, summary) == ("skipped", "compute-sanitizer is not installed")


def test_the_sanitizer_is_found_in_cuda_home(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{MEMCHECK}'\necho '{RACECHECK}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu.steps.find_sanitizer() == str(program)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    status, summary, details = gpu.steps.sanitizer(gpu.steps.Settings(tmp_path))
    assert (status, summary) == ("passed", "memcheck: clean, racecheck: clean")
    assert details["racecheck"]["tail"]


def test_a_command_out_of_time_is_ended(gpu: Any) -> None:
    code, output = gpu.steps.run_logged(["sh", "-c", "echo begun; exec sleep 60"], 1)
    assert (code, output) == (None, "begun")
    assert gpu.steps.text_of(["sh", "-c", "echo wrong >&2; exit 3"]) == "[exit code 3: wrong]"
    assert "No such file" in gpu.steps.text_of(["/nowhere/program"])


def epoch(loss: float) -> dict[str, Any]:
    return {"kind": "epoch", "loss": loss, "targets_per_second": 1000.0}


def test_training_must_learn_and_agree_with_the_cpu(gpu: Any) -> None:
    judge = gpu.steps.judge_training
    assert judge([epoch(6.0), epoch(5.0)], {"on the CPU": [epoch(6.1)]})[0] == "passed"
    assert "1,000 targets/s" in judge([epoch(6.0), epoch(5.0)], {})[1]
    assert judge([epoch(5.0), epoch(6.0)], {})[0] == "failed"
    assert judge([epoch(6.0), epoch(float("nan"))], {})[0] == "failed"
    status, said = judge([epoch(6.0), epoch(5.0)], {"on the CPU": [epoch(7.0)], "twice": [epoch(6.0)]})
    assert status == "failed" and "epoch 1 on the CPU 7.0000 (14.3% away), 1,000 targets/s" in said


def test_training_runs_in_every_way(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the GPU's place, and a graphed run that fails as it must there."""
    whole = gpu.steps.train_once
    calls = []

    def on_cpu(device: str, epochs: int, seconds: float, **more: object) -> Any:
        calls.append((device, epochs, more))
        return whole("cpu", epochs, seconds, **more, batch_size=1 << 20)  # an epoch is a step

    monkeypatch.setattr(gpu.steps, "train_once", on_cpu)
    settings = gpu.steps.Settings(tmp_path, limit=200, quick=True)
    status, said, _ = gpu.steps.training(settings)
    assert calls == [("cuda", 2, {}), ("cuda", 2, {"cuda_graphs": "true"})]
    assert status == "failed" and "with CUDA graphs: exit code 2" in said and "needs a GPU" in said


def test_benchmarks_fail_when_a_check_does(gpu: Any) -> None:
    details = bench_details()
    status, summary = gpu.numerics.judge_benchmarks(details)
    assert status == "failed"
    assert "1 passed, 1 failed, 1 not run" in summary and "y off by nan" in summary
    del details["cases"][1]
    assert gpu.numerics.judge_benchmarks(details)[0] == "passed"
    del details["cases"][0]
    assert gpu.numerics.judge_benchmarks(details)[0] == "failed"


# Ops and peers, on the CPU


def small(gpu: Any, **more: Any) -> Any:
    return gpu.ops.RelaCase(3, 50, 16, "fp64", heads=2, **more)


@pytest.mark.parametrize("causal", [True, False])
def test_expectations_equal_our_kernels(gpu: Any, causal: bool) -> None:
    case = small(gpu, causal=causal)
    x = case.operands("cpu")
    errors = gpu.ops.errors_of(case.expected(x), gpu.ops.results(case.ours(x), x))
    assert set(errors) == {"y", "qk", "v", "g", "weight", "bias"}
    assert not gpu.ops.fault_of(errors, gpu.ops.TOLERANCES["fp64"])


def test_parameters_are_checked_over_all_sequences(gpu: Any) -> None:
    case = gpu.ops.ConvCase(300, 5, 8, "fp64")
    x = case.operands("cpu")
    expected, got = case.expected(x), gpu.ops.results(case.ours(x), x)
    assert len(expected["y"]) == gpu.ops.CHECKED_SEQUENCES * 5
    assert not gpu.ops.fault_of(gpu.ops.errors_of(expected, got), gpu.ops.TOLERANCES["fp64"])


def test_errors_and_nan_are_faults(gpu: Any) -> None:
    want = {"y": torch.ones(4)}
    good, off = {"y": torch.ones(5)}, {"y": torch.tensor([1.0, 1, 1, 1.1])}
    nan = {"y": torch.tensor([1.0, 1, 1, float("nan")])}
    faults = [gpu.ops.fault_of(gpu.ops.errors_of(want, got), (1e-2, 1e-2)) for got in (good, off, nan)]
    assert faults[0] == ""
    assert "y off by 5.0e-02 (norm), 1.0e-01 (largest)" in faults[1]
    assert "nan" in faults[2]


@pytest.mark.parametrize("causal", [True, False])
def test_eager_peers_compute_the_same(gpu: Any, causal: bool) -> None:
    case = small(gpu, causal=causal)
    x = case.operands("cpu")
    expected = gpu.ops.results(case.ours(x), x)
    peers = gpu.peers.eager_peers(case)
    assert len(peers) == 1 + causal
    for peer in peers:
        errors = gpu.ops.errors_of(expected, gpu.ops.results(peer.call(x), x))
        assert not gpu.ops.fault_of(errors, gpu.ops.TOLERANCES["fp64"]), peer.name


def test_eager_convolutions_compute_the_same(gpu: Any) -> None:
    case = gpu.ops.ConvCase(3, 20, 8, "fp64", taps=3)
    x = case.operands("cpu")
    expected = gpu.ops.results(case.ours(x), x)
    for peer in gpu.peers.eager_peers(case):
        errors = gpu.ops.errors_of(expected, gpu.ops.results(peer.call(x), x))
        assert not gpu.ops.fault_of(errors, gpu.ops.TOLERANCES["fp64"]), peer.name


def test_nobody_makes_long_masks(gpu: Any) -> None:
    peers = gpu.peers.eager_peers(gpu.ops.RelaCase(8, 16384, 64, "bf16"))
    assert [peer.call is None for peer in peers] == [True, False]
    assert "L=16384" in peers[0].note


def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fla", "fast_transformers", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, name, None)


def test_packages_that_are_not_installed_are_listed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_packages(monkeypatch)
    peers = gpu.peers.package_peers(small(gpu)) + gpu.peers.package_peers(gpu.ops.ConvCase(1, 4, 8, "fp32"))
    assert {peer.name: peer.note for peer in peers} == dict.fromkeys(
        ("fla", "fast-transformers", "causal_conv1d package"), "not installed"
    )
    assert all(peer.call is None for peer in peers)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, normalize: bool) -> tuple[Tensor, None]:
    """As fla's: [B, T, H, K]."""
    assert scale == 1 and not normalize
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT).tril() @ v).transpose(1, 2), None


def causal_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As fast-transformers': [B, H, L, E]."""
    return (q @ k.mT).tril() @ v


def package_convolution(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """As causal_conv1d's: [B, D, L]."""
    assert activation == "silu"
    width = weight.shape[1]
    y = torch.nn.functional.conv1d(x, weight[:, None], bias, padding=width - 1, groups=len(weight))
    return torch.nn.functional.silu(y[..., : x.shape[2]])


def test_packages_compute_the_same(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "causal_conv1d", causal_conv1d_fn=package_convolution)
    install(monkeypatch, "fla.ops.linear_attn", chunk_linear_attn=linear_attention)
    install(monkeypatch, "fast_transformers.causal_product", causal_dot_product=causal_product)
    conv = gpu.ops.ConvCase(3, 20, 8, "fp32")
    rela = gpu.ops.RelaCase(3, 50, 16, "fp32", heads=2)
    names = []
    for case in (rela, conv):
        x = case.operands("cpu")
        expected = case.expected(x)
        for peer in gpu.peers.package_peers(case):
            errors = gpu.ops.errors_of(expected, gpu.ops.results(peer.call(x), x))
            assert not gpu.ops.fault_of(errors, gpu.ops.TOLERANCES["fp32"]), peer.name
            names.append(peer.name)
    assert names == ["fla + causal_conv1d", "fast-transformers", "causal_conv1d package"]
    for case in (small(gpu, causal=False), gpu.ops.RelaCase(3, 50, 16, "bf16", causal=False)):
        assert all(peer.call is None and "causal" in peer.note for peer in gpu.peers.package_peers(case))


def test_a_package_that_does_not_load_says_why(gpu: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "causal_conv1d.py").write_text("raise ImportError('undefined symbol: x')\n")
    monkeypatch.delitem(sys.modules, "causal_conv1d", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (peer,) = gpu.peers.package_peers(gpu.ops.ConvCase(1, 4, 8, "fp32"))
    assert peer.call is None
    assert peer.note == "cannot be imported: ImportError: undefined symbol: x"


def test_what_takes_too_long_is_stopped(gpu: Any) -> None:
    with pytest.raises(TimeoutError, match="took more than"), gpu.peers.time_limit(0.05):
        time.sleep(5)
    with gpu.peers.time_limit(30):
        pass


def test_the_sanitizers_target_covers_every_width(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    few = gpu.ops.small_cases(("fp32",)) + gpu.scans.small_cases(("fp32",))
    assert gpu.numerics.sanitize_target("cpu", ("fp32",)) == len(few)
    assert capsys.readouterr().out.startswith(gpu.steps.SANITIZED)
    cases = gpu.ops.small_cases(("fp32", "fp16", "bf16"))
    rela = [case for case in cases if case.name == "gated_rela"]
    kinds = {(case.dtype, case.causal, case.dim // case.heads, max(case.lengths) > 256) for case in rela}
    assert len(kinds) == 3 * 2 * 5 * 2
    scans = gpu.scans.small_cases(("fp32", "fp16", "bf16"))
    selective = {(case.dtype, case.states) for case in scans if case.name == "selective_scan"}
    assert len(selective) == 3 * 6


def test_small_cases_equal_the_wide_kernels(gpu: Any) -> None:
    for case in gpu.ops.small_cases(("fp32",)) + gpu.scans.small_cases(("fp32",)):
        errors = gpu.ops.compare_with_cpu(case, "cpu")
        assert not gpu.ops.fault_of(errors, gpu.ops.TOLERANCES["fp32"]), str(case)


# The benchmark itself, on the CPU


def test_a_case_is_measured_beside_its_peers(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_packages(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    case = gpu.ops.RelaCase(3, 50, 16, "fp32", heads=2)
    record = gpu.bench.run_case(case, "cpu", 1e10, rounds=3, compile_seconds=30)
    assert record["status"] == "passed"
    assert record["ours"]["forward_us"] > 0 and record["ours"]["peak_bytes"] is None
    assert record["faster_eager"] in ("eager causal_masked", "eager causal_chunked")
    assert {name for name, peer in record["peers"].items() if "ratio" in peer} == {
        "eager causal_masked",
        "eager causal_chunked",
        "torch.compile",
    }
    assert record["peers"]["fla"] == {"note": "not installed"}
    assert max(error["norm"] for error in record["errors"].values()) < 1e-5
    json.dumps(record)
    details = {"copy_gb_s": 10.0, "cases": [record]}
    assert str(case)[:10] in shown([step_result("benchmarks", details=details)], gpu)


def test_no_speed_without_a_right_result(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = gpu.ops.ConvCase(3, 20, 8, "fp32")
    wrong = gpu.ops.ConvCase.ours
    monkeypatch.setattr(gpu.ops.ConvCase, "ours", lambda self, x: wrong(self, x) * 1.001)
    record = gpu.bench.run_case(case, "cpu", 1e10, rounds=3)
    assert record["status"] == "failed" and "y off by 1.0e-03" in record["fault"]
    assert "ours" not in record and record["peers"] == {}


def test_a_wrong_or_failing_peer_has_no_speed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_packages(monkeypatch)

    def out_of_memory(*args: Any) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate\n 99 GiB")

    monkeypatch.setattr(gpu.peers, "conv_by_torch", out_of_memory)
    monkeypatch.setattr(gpu.peers, "conv_by_shifts", lambda v, weight, bias: 2 * v + weight[:, 0] + bias)
    record = gpu.bench.run_case(gpu.ops.ConvCase(3, 20, 8, "fp32"), "cpu", 1e10, rounds=3)
    assert record["status"] == "passed" and "ours" in record and "faster_eager" not in record
    assert record["peers"]["eager conv1d"]["note"] == "OutOfMemoryError: tried to allocate 99 GiB"
    assert record["peers"]["eager shifts"]["note"].startswith("wrong: y off by")
    assert not any("ratio" in peer for peer in record["peers"].values())


def test_cases_run_in_order_until_the_time_is_over(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_packages(monkeypatch)
    plans = [gpu.bench.Plan(gpu.ops.ConvCase(2, 10, 8, "fp32"), 2)]
    # The CPU has no kernel for fp16: an error that the next case survives.
    plans = [gpu.bench.Plan(gpu.ops.ConvCase(2, 10, 8, "fp16"), 2), *plans]
    saved: list[int] = []
    found = gpu.bench.run_plans(plans, "cpu", 60, lambda part: saved.append(len(part["cases"])), 1 << 20)
    assert [case["status"] for case in found["cases"]] == ["failed", "passed"]
    assert found["cases"][0]["fault"].startswith("TypeError")
    assert saved == [1, 2] and found["copy_gb_s"] > 0
    late = gpu.bench.run_plans(plans, "cpu", -1, lambda part: None, 1 << 20)
    assert [case["status"] for case in late["cases"]] == ["not run", "not run"]
