"""The record of a gpu_check, from its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import gpu_record
from tools.gpu_estimate import Call, Gpu
from tools.gpu_record import calls_of, case_of, operators_of

OURS = {"forward_us": 10.04, "backward_us": 30.0, "forward_share": 0.5, "backward_share": 0.25}
OURS |= {"host_us": 700.2, "peak_bytes": 2_500_000}


@pytest.mark.parametrize(
    "case, call",
    [
        (
            "gated_rela causal bf16 B=1024 L=200 D=128 H=4",
            ("gated_rela", "head 32", "bfloat16", "causal", 1024, 128),
        ),
        ("causal_conv1d fp32 B=2048 L=200 C=64 K=4", ("causal_conv1d", "K 4", "float32", "", 2048, 64)),
        (
            "linear_scan constant complex64 B=2048 L=200 C=64",
            ("linear_scan", "complex, constant", "float32", "", 2048, 64),
        ),
        (
            "linear_scan per step bf16 B=8 L=200 C=64",
            ("linear_scan", "real, each step", "bfloat16", "", 8, 64),
        ),
        ("selective_scan fp32 B=2048 L=200 C=128 N=16", ("selective_scan", "N 16", "float32", "", 2048, 128)),
    ],
)
def test_calls_of_cases(case: str, call: tuple[str, str, str, str, int, int]) -> None:
    op, variant, dtype, form, batch, width = call
    assert list(calls_of(case, OURS)) == [
        Call(op, direction, variant, dtype, form, batch, 200, width, us)
        for direction, us in (("forward", 10.0), ("backward", 30.0))
    ]


def test_other_operators_have_no_calls() -> None:
    assert list(calls_of("gated_rela_last fp32 B=2048 L=200 D=64 H=4", OURS)) == []


def test_a_call_has_all_kernels_of_its_operator() -> None:
    kinds = {
        "recgrela rela_forward": {"ms": 0.3, "launches": 3.0},
        "recgrela rela_key_sums": {"ms": 0.6, "launches": 3.0},
        "recgrela linear_split_backward": {"ms": 0.4, "launches": 2.0},
        "Adam": {"ms": 0.1, "launches": 4.0},
    }
    assert list(operators_of({"setting": "last fp32", "kinds": kinds})) == [
        {"operator": "gated_rela", "setting": "last fp32", "us": 300.0},
        {"operator": "linear_backward", "setting": "last fp32", "us": 200.0},
    ]


def test_peers_are_their_times_divided_by_ours() -> None:
    peers = {"eager a": {"ratio": 8.456}, "torch.compile": {"note": "no time left", "missed": True}}
    assert case_of({"case": "mlp", "ours": OURS, "peers": peers}) == {
        "case": "mlp",
        "forward_us": 10.0,
        "backward_us": 30.0,
        "forward_share": 0.5,
        "backward_share": 0.25,
        "host_us": 700,
        "peak_mb": 2.5,
        "peers": {"eager a": 8.46},
    }


def test_the_command_writes_figures_for_the_estimates(tmp_path: Path) -> None:
    facts = json.loads(gpu_record.FIGURES_BEFORE.read_text())["machine"] | {
        "date": "2026-01-01",
        "commit": "abc",
    }
    facts |= dict.fromkeys(("capability", "memory_bytes", "l2_bytes", "cuda", "python"), 0)
    step = {"setting": "all", "way": "recgrela", "ms": 1.0, "host_ms": 0.1, "peak_mb": 5.0}
    step |= {"kinds": {"Adam": {"ms": 0.5, "launches": 4.0}}}
    cases = [
        {"case": "causal_conv1d fp32 B=2048 L=200 C=64 K=4", "ours": OURS, "peers": {}},
        {"case": "mlp dropout", "status": "failed", "peers": {}},
    ]
    steps = {
        "facts": facts,
        "whole_step": {"rows": [step, {"setting": "all", "way": "compiled"}]},
        "benchmarks": {"copy_gb_s": 4100.0, "cases": cases},
    }
    report = {"steps": [{"step": name, "summary": name, "details": found} for name, found in steps.items()]}
    path, out = tmp_path / "gpu_check.json", tmp_path / "record.json"
    path.write_text(json.dumps(report))
    assert gpu_record.main([str(path), str(out)]) == 0
    written, gpu = json.loads(out.read_text()), Gpu(out)
    assert (written["commit"], written["not_measured"], len(written["steps"])) == ("abc", ["mlp dropout"], 1)
    assert gpu.bytes_per_us == pytest.approx(4.1e6)
    assert [call.us for call in gpu.measured] == [10.0, 30.0]
    assert written["machine"]["launch_us"] == 250.0  # 1 ms for 4 launches
