"""The scans' cases and peers of benchmarks/gpu/gpu_check.py, on the CPU."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.support.packages import install
from recgrela.ops import linear_scan_reference, selective_scan_reference


def cases(gpu: Any, dtype: str = "fp64") -> list[Any]:
    return [
        gpu.scans.LinearScanCase(6, 19, 5, dtype),
        gpu.scans.LinearScanCase(6, 19, 5, dtype, complex=True),
        gpu.scans.SelectiveScanCase(6, 19, 5, dtype, states=3),
    ]


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_expectations_equal_our_kernels(gpu: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.scans, "CHUNK", chunk)
    for case in cases(gpu):
        x = case.operands("cpu")
        expected = case.expected(x)
        errors = gpu.ops.errors_of(expected, gpu.ops.results(case.ours(x), x))
        assert set(errors) == {"y", *x.inputs}
        assert len(expected["y"]) >= gpu.ops.CHECKED_SEQUENCES * 19
        assert not gpu.ops.fault_of(errors, gpu.ops.TOLERANCES["fp64"]), str(case)


def test_eager_peers_compute_the_same(gpu: Any) -> None:
    counts = []
    for case in cases(gpu):
        x = case.operands("cpu")
        expected = gpu.ops.results(case.ours(x), x)
        peers = gpu.peers.eager_peers(case)
        counts.append(len(peers))
        for peer in peers:
            errors = gpu.ops.errors_of(expected, gpu.ops.results(peer.call(x), x))
            assert not gpu.ops.fault_of(errors, gpu.ops.TOLERANCES["fp64"]), f"{case} {peer.name}"
    assert counts == [2, 2, 1]


def test_nobody_loops_over_long_sequences(gpu: Any) -> None:
    (peer,) = gpu.peers.eager_peers(gpu.scans.SelectiveScanCase(8, 4096, 128, "fp32"))
    assert peer.call is None and "L=4096" in peer.note


def package_scan(gates: Tensor, tokens: Tensor) -> Tensor:
    """As accelerated_scan's: [B, C, L], L a power of 2."""
    assert gates.is_contiguous() and gates.shape[2].bit_count() == 1 and gates.shape[2] >= 32
    cu_seqlens = torch.arange(len(gates) + 1) * gates.shape[2]
    h = linear_scan_reference(tokens.mT.flatten(0, 1), gates.mT.flatten(0, 1), cu_seqlens)
    assert isinstance(h, Tensor)
    return h.view(gates.mT.shape).mT


def package_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """As mamba_ssm's: [B, I, L]."""
    assert delta_softplus
    rows = [t.mT.flatten(0, 1) for t in (u, delta, B, C, z)]
    cu_seqlens = torch.arange(len(u) + 1) * u.shape[2]
    y = selective_scan_reference(rows[0], rows[1], A, rows[2], rows[3], D, rows[4], delta_bias, cu_seqlens)
    assert isinstance(y, Tensor)
    return y.view(u.mT.shape).mT


def test_packages_compute_the_same(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "accelerated_scan.warp", scan=package_scan)
    install(monkeypatch, "mamba_ssm.ops.selective_scan_interface", selective_scan_fn=package_selective_scan)
    names = []
    for case in cases(gpu, "fp32"):
        x = case.operands("cpu")
        expected = case.expected(x)
        for peer in gpu.peers.package_peers(case):
            errors = gpu.ops.errors_of(expected, gpu.ops.results(peer.call(x), x))
            assert not gpu.ops.fault_of(errors, gpu.ops.TOLERANCES["fp32"]), peer.name
            names.append(peer.name)
    assert names == ["accelerated_scan", "mamba_ssm"]


def test_a_scan_is_measured_beside_its_peers(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("accelerated_scan", "mamba_ssm"):
        monkeypatch.setitem(sys.modules, name, None)
    for case in cases(gpu, "fp32"):
        record = gpu.bench.run_case(case, "cpu", 1e10, rounds=2)
        assert record["status"] == "passed" and record["ours"]["forward_us"] > 0
        assert record["faster_eager"].startswith("eager by_")
        assert all(
            peer == {"note": "not installed"} for name, peer in record["peers"].items() if "eager" not in name
        )


def test_bytes_of_the_floor(gpu: Any) -> None:
    rows = 2048 * 200
    real = gpu.scans.LinearScanCase(2048, 200, 64, "bf16")
    assert (real.forward_bytes, real.backward_bytes) == (rows * 64 * 8, rows * 64 * 14)
    turn = gpu.scans.LinearScanCase(2048, 200, 64, "fp32", complex=True)
    assert (turn.forward_bytes, turn.backward_bytes) == (rows * 64 * 16, rows * 64 * 24)
    selective = gpu.scans.SelectiveScanCase(2048, 200, 128, "fp32")
    assert selective.forward_bytes == rows * (4 * 128 + 2 * 16) * 4
    assert selective.backward_bytes == rows * (7 * 128 + 4 * 16) * 4


def test_states_by_doubling(gpu: Any) -> None:
    a, x = torch.rand(2, 13, 3, dtype=torch.float64), torch.randn(2, 13, 3, dtype=torch.float64)
    h = torch.zeros(2, 3, dtype=torch.float64)
    for i in range(13):
        h = a[:, i] * h + x[:, i]
    assert torch.allclose(gpu.scans.by_doubling(a, x)[:, -1], h)
    assert torch.equal(gpu.scans.by_doubling(a, x)[:, 0], x[:, 0])
