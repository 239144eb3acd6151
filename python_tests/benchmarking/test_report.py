"""The report of gpu_check."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.gpu import bench, report


def bench_details() -> dict[str, Any]:
    ours = {f"{way}_{key}": 10.0 for way in ("forward", "backward") for key in ("us", "gb_s")}
    ours |= {"forward_share": 0.75, "backward_share": 0.5, "host_us": 1.0, "peak_bytes": 3_000_000}
    eager = {"ratio": 7.0, "forward_ratio": 6.25, "backward_ratio": 8.5, "peak_bytes": 9_000_000}
    peers = {
        "eager causal_masked": {"note": "OutOfMemoryError: no [memory]"},
        "eager causal_chunked": eager,
        "torch.compile of causal_chunked": {"note": "took more than 30 s", "missed": True},
        "flash-linear-attention": {"note": "not installed"},
    }
    good = {"case": "good", "status": "passed", "ours": ours, "peers": peers}
    good["faster_eager"] = "eager causal_chunked"
    bad = {"case": "bad", "status": "failed", "fault": "y off by nan", "peers": {}}
    late = {"case": "late", "status": "not run", "fault": "no time left", "peers": {}}
    return {"copy_gb_s": 4300.0, "l2_bytes": 1, "cases": [good, bad, late]}


def step_result(name: str, status: str = "passed", **more: Any) -> dict[str, Any]:
    return {"step": name, "seconds": 1.0, "status": status, "summary": f"{name}.", "details": {}} | more


def shown(steps: list[dict[str, Any]]) -> str:
    console = Console(file=io.StringIO(), width=220)
    report.show(steps, console)
    return " ".join(console.file.getvalue().replace("│", " ").replace("┃", " ").split())


def test_the_tables_show_everything() -> None:
    steps = [
        step_result("facts"),
        step_result("build", "failed", summary="exit [code] 1", tail="error: [no] such file"),
        step_result("sanitizer", "skipped", summary="compute-sanitizer is not installed"),
        step_result("benchmarks", "failed", details=bench_details()),
    ]
    text = shown(steps)
    for part in (
        "exit [code] 1",
        "error: [no] such file",
        "compute-sanitizer is not installed",
        "10 / 10",
        "75 / 50 %",
        "6.25 / 8.50",
        "causal_chunked",
        "3 (eager 9)",
        "took more than 30 s",
        "flash-linear-attention: not installed",
        "failed: y off by nan",
        "4,300 GB/s",
    ):
        assert part in text, part


def test_the_tables_of_a_training_step() -> None:
    kinds = {"recgrela add_norm": {"ms": 0.5, "launches": 8.0}, "products": {"ms": 0.25, "launches": 6.0}}
    ours = {
        "setting": "last",
        "way": "recgrela",
        "ms": 5.125,
        "host_ms": 0.5,
        "peak_mb": 2048.0,
        "kinds": kinds,
    }
    plain = {"setting": "last", "way": "plain PyTorch", "status": "not run", "fault": "took [more] than 20 s"}
    text = shown([step_result("whole_step", details={"rows": [ours, plain]})])
    for part in (
        "last recgrela 5.12 0.50 2,048",
        "last plain PyTorch - - - took [more] than 20 s",
        "recgrela add_norm 0.500 8.0",
        "all 0.750 14.0",
    ):
        assert part in text, part


def test_the_benchmarks_fail_when_a_case_does() -> None:
    details = bench_details()
    status, summary = bench.judge(details)
    assert status == "failed"
    assert "1 passed, 1 failed, 1 not run" in summary and "y off by nan" in summary
    assert "missed: torch.compile of causal_chunked (1)" in summary
    del details["cases"][1]
    assert bench.judge(details)[0] == "passed"
    del details["cases"][0]
    assert bench.judge(details)[0] == "failed"


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "gpu_check.json"
    report.write_json(path, {"a": 1})
    circle: dict[str, Any] = {}
    circle["self"] = circle
    with pytest.raises(ValueError):
        report.write_json(path, circle)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
