"""The op benchmarks of gpu_check, on the CPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.gpu import bench, measure, workers
from benchmarks.gpu.peers import Family, Peer, eager_peers
from python_tests.benchmarking import stubborn
from python_tests.cases import CASES, CausalConv1dCase, GatedRelaCase, LinearScanCase, SelectiveScanCase
from python_tests.cases.case import HEADLINE_LENGTHS

HALF = torch.bfloat16
SMALL = GatedRelaCase(lengths=(50,) * 3, heads=2, head_dim=8, joined=True)
CONV = CausalConv1dCase(lengths=(20,) * 3, channels=8)


# Sizes


def test_the_floor_is_that_of_the_design() -> None:
    fp32, bf16 = (GatedRelaCase(lengths=HEADLINE_LENGTHS, dtype=dtype) for dtype in (torch.float32, HALF))
    assert (fp32.forward_bytes, fp32.backward_bytes) == (5 * 104_857_600, 9 * 104_857_600)
    assert (bf16.forward_bytes, bf16.backward_bytes) == (5 * 52_428_800, 9 * 52_428_800)
    conv = CausalConv1dCase(lengths=HEADLINE_LENGTHS)
    assert (conv.forward_bytes, conv.backward_bytes) == (2 * 104_857_600, 3 * 104_857_600)
    rows = 2048 * 200
    real = LinearScanCase(lengths=HEADLINE_LENGTHS, dtype=HALF)
    assert (real.forward_bytes, real.backward_bytes) == (rows * 64 * 8, rows * 64 * 14)
    turn = LinearScanCase(lengths=HEADLINE_LENGTHS, dtype=torch.complex64, per_step=False)
    assert (turn.forward_bytes, turn.backward_bytes) == (rows * 64 * 16, rows * 64 * 24)
    selective = SelectiveScanCase(lengths=HEADLINE_LENGTHS)
    assert selective.forward_bytes == rows * (4 * 128 + 2 * 16) * 4
    assert selective.backward_bytes == rows * (7 * 128 + 4 * 16) * 4


def test_figures_follow_from_bytes_and_seconds() -> None:
    case = GatedRelaCase(lengths=HEADLINE_LENGTHS)
    samples = measure.Samples([244e-6, 1.0, 1e-9], [440e-6] * 3, [1e-5] * 3)
    found = measure.figures(case, samples, 4.3e12)
    assert found["forward_us"] == pytest.approx(244)
    assert found["forward_gb_s"] == pytest.approx(5 * 104_857_600 / 244e-6 / 1e9)
    assert found["forward_share"] == pytest.approx(0.5, abs=0.01)  # the floor is 122 us
    assert found["backward_share"] == pytest.approx(0.5, abs=0.01)
    assert found["host_us"] == pytest.approx(10)


@pytest.mark.parametrize("cache", [0, 10 << 20, 60 << 20, 1 << 30])
def test_sets_of_operands_exceed_twice_the_cache(cache: int) -> None:
    case = GatedRelaCase(lengths=HEADLINE_LENGTHS[:256], dtype=HALF)
    sets = measure.number_of_sets(case, cache)
    assert 2 <= sets <= measure.MAX_SETS
    assert sets * case.forward_bytes > 2 * cache or sets == measure.MAX_SETS


def test_every_headline_case_exceeds_twice_a_large_cache() -> None:
    for plan in bench.plans(quick=False):
        sets = measure.number_of_sets(plan.case, 60 << 20)
        assert not plan.headline or sets * plan.case.forward_bytes > 2 * (60 << 20)


def test_the_headline_sizes_of_all_ops_come_first() -> None:
    planned = [plan.case for plan in bench.plans(quick=False)]
    headline = [case for op in CASES for case in op.headline(False)]
    assert planned[: len(headline)] == headline
    assert isinstance(planned[0], GatedRelaCase)
    assert {case.op for case in headline} == {op.op for op in CASES}
    assert [plan.case for plan in bench.plans(quick=False) if plan.headline] == headline
    assert not any(plan.compiled for plan in bench.plans(quick=True))


def test_peers_measure_the_headline_first(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)
    order: list[tuple[str, int]] = []

    def peers_of(name: str) -> Any:
        def peers(case: Any) -> list[Peer]:
            order.append((name, case.rows))
            return [Peer(name, None, "not measured")]

        return peers

    cases = [CausalConv1dCase(lengths=(n,), channels=8) for n in (5, 6, 7)]
    plans = [bench.Plan(case, 1, headline=case.rows < 7) for case in cases]
    families = [Family(name, peers_of(name), 30.0) for name in ("first", "second")]
    bench.run_plans(plans, "cpu", 60, lambda details: None, families, 1 << 20)
    headline = [(name, rows) for name in ("first", "second") for rows in (5, 6)]
    assert order == [*headline, ("first", 7), ("second", 7)]


# Our ops


def test_our_op_is_measured_beside_its_peers() -> None:
    record = bench.measure_ours(bench.Plan(SMALL, 3), "cpu", 1e10)
    assert record["status"] == "passed"
    assert record["ours"]["forward_us"] > 0 and record["ours"]["peak_bytes"] is None
    assert max(error["norm"] for error in record["errors"].values()) < 1e-5
    for peer in eager_peers(SMALL):
        record["peers"][peer.name] = workers.measure_peer(SMALL, peer, "cpu", 1e10, 3)
        assert record["peers"][peer.name]["ratio"] > 0
    assert bench.faster_eager(record) in ("eager causal_masked", "eager causal_chunked")
    json.dumps(record)


@pytest.mark.parametrize("op", CASES, ids=lambda op: op.op)
def test_every_op_is_measured(op: Any) -> None:
    for case in op.variants((19,) * 3, torch.float32):
        record = bench.measure_ours(bench.Plan(case, 2), "cpu", 1e10)
        assert record["status"] == "passed" and record["ours"]["forward_us"] > 0


def test_no_speed_without_a_right_result(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CausalConv1dCase.call
    monkeypatch.setattr(CausalConv1dCase, "call", lambda self, x, op=None: {"y": right(self, x)["y"] * 1.001})
    record = bench.measure_ours(bench.Plan(CONV, 3), "cpu", 1e10)
    assert record["status"] == "failed" and "y off by 1.0e-03" in record["fault"]
    assert "ours" not in record and record["peers"] == {}


def test_a_wrong_or_failing_peer_has_no_speed() -> None:
    wrong, large, absent = (
        workers.measure_peer(CONV, peer, "cpu", 1e10, 3) for peer in stubborn.failures(CONV)
    )
    assert wrong["note"].startswith("wrong: y off by")
    assert large["note"] == "OutOfMemoryError: tried to allocate 99 GiB"
    assert absent == {"note": "why"}
    assert not any("ratio" in record for record in (wrong, large, absent))


# Peers in processes of their own


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures peers in this process."""

    class Worker(workers.Worker):
        def records(self, case: Any, wanted: Any, rounds: int, seconds: float) -> Any:
            for peer in self.family.peers(case):
                if wanted is None or peer.name in wanted:
                    yield peer.name, workers.measure_peer(case, peer, self.device, self.bandwidth, rounds)

    monkeypatch.setattr(bench, "Worker", Worker)


def test_cases_run_in_order_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)
    bad = CausalConv1dCase(lengths=(10,) * 2, kernel_size=0)  # raises an error
    plans = [bench.Plan(bad, 2), bench.Plan(CONV, 2)]
    saved: list[str] = []
    families = [Family("eager", eager_peers, 30.0)]

    def save(details: dict[str, Any]) -> None:
        saved.append(json.dumps(details))

    found = bench.run_plans(plans, "cpu", 60, save, families, 1 << 20)
    assert [case["status"] for case in found["cases"]] == ["failed", "passed"]
    assert "Error: " in found["cases"][0]["fault"] and found["copy_gb_s"] > 0
    assert list(found["cases"][1]["peers"]) == ["eager conv1d", "eager shifts"]
    assert found["cases"][1]["faster_eager"].startswith("eager ")
    assert len(saved) == 4  # after each case, and after each peer
    late = bench.run_plans(plans, "cpu", -1, lambda part: None, families, 1 << 20)
    assert [case["status"] for case in late["cases"]] == ["not run", "not run"]


def test_torch_compile_takes_the_faster_form(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)
    made = ["torch.compile of conv1d", "torch.compile of shifts"]
    compiled = Family("torch.compile", lambda case: [Peer(name, None, "made") for name in made], 30.0)
    families = [Family("eager", eager_peers, 30.0), compiled]
    found = bench.run_plans([bench.Plan(CONV, 2, compiled=True)], "cpu", 60, print, families, 1 << 20)
    (record,) = found["cases"]
    best = record["faster_eager"].removeprefix("eager ")
    assert [name for name in record["peers"] if name in made] == [f"torch.compile of {best}"]
    found = bench.run_plans([bench.Plan(CONV, 2)], "cpu", 60, print, families, 1 << 20)
    assert not set(made) & set(found["cases"][0]["peers"])


def test_peers_without_time_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)
    monkeypatch.setattr(bench, "MIN_SECONDS", 1e9)
    families = [Family("eager", eager_peers, 30.0)]
    found = bench.run_plans([bench.Plan(CONV, 2)], "cpu", 60, lambda part: None, families, 1 << 20)
    assert found["cases"][0]["peers"] == {"eager": {"note": "no time left", "missed": True}}
    assert "missed: eager (1)" in bench.judge(found)[1]


def test_a_peer_that_does_not_end_holds_up_nothing() -> None:
    """The peer sleeps in C and ignores signals; every result is saved as soon as it is measured."""
    plans = [bench.Plan(CONV, 2), bench.Plan(SMALL, 2), bench.Plan(CONV, 2)]
    families = [
        Family("sleepers", stubborn.sleepers, 5.0),
        Family("leavers", stubborn.leavers, 30.0),
        Family("eager", eager_peers, 60.0),
        Family("absent", eager_peers, 30.0, package="no_such_package"),
        Family("other op", eager_peers, 30.0, op="selective_scan"),
    ]
    saved: list[Any] = []

    def save(details: dict[str, Any]) -> None:
        saved.append(json.loads(json.dumps(details)))

    found = bench.run_plans(plans, "cpu", 240, save, families, 1 << 20)
    first, second, third = (case["peers"] for case in found["cases"])
    assert all("ours" in case for case in found["cases"])
    for record in (first, second):  # the process starts again after it was killed
        assert record["sleeper"] == {"note": "took more than 5 s", "missed": True}
        assert "never begun" not in record
    assert third["sleepers"]["note"] == "given up after 2 calls that did not end"
    assert first["leaver"]["note"] == "its process ended with exit code 7"
    for record in (first, third):
        assert record["eager conv1d"]["ratio"] > 0 and record["eager shifts"]["ratio"] > 0
        assert record["absent"] == {"note": "not installed"} and "other op" not in record
    assert bench.judge(found)[0] == "passed"
    assert "missed: sleeper (2)" in bench.judge(found)[1]
    # Our results are saved before any peer begins, and each peer's record before the next peer begins.
    assert all("ours" in case for case in saved[len(plans) - 1]["cases"])
    grown = [sum(len(case["peers"]) for case in details["cases"]) for details in saved]
    assert grown == sorted(grown) and grown[len(plans) - 1] == 0
