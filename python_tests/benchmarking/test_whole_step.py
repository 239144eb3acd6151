"""The step of gpu_check that measures whole training steps, on the CPU at small sizes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.gpu import breakdown, step_rows, whole_step
from benchmarks.gpu.step_rows import COMPILED, PLAIN, WITHOUT_GRAPHS, Amount, Row
from benchmarks.steps import SETTINGS
from benchmarks.timing import OURS
from recgrela.data import DataConfig, TrainBatches, load

DATA = DataConfig(max_len=20, synthetic_users=60, synthetic_items=50, synthetic_events=12)
LITTLE = Amount(batches=2, warm_up=1, rounds=2, profiled=1)
LAST, ALL = (
    replace(SETTINGS[name], batch_size=size) for name, size in (("last fp32", 8), ("all 3,200 fp32", 64))
)


@pytest.mark.parametrize("setting", [LAST, ALL], ids=lambda setting: setting.objective)
def test_every_way_is_measured(setting: Any) -> None:
    losses = []
    for way in (OURS, WITHOUT_GRAPHS, PLAIN):
        record = step_rows.measure_row(Row(setting, way), "cpu", LITTLE, DATA)
        assert (record["status"], record["setting"], record["way"]) == ("passed", setting.name, way)
        assert 0 < record["host_ms"] <= record["ms"]
        assert record["kinds"]["products"]["launches"] > 10
        assert sum(kind["ms"] for kind in record["kinds"].values()) > 0
        losses.append(record["loss"])
    assert losses[0] == losses[1]  # without a GPU there are no graphs
    assert 1 < losses[2] < 100


def test_padded_batches_hold_the_same_items() -> None:
    batches = TrainBatches(load(DATA), "all", DATA.max_len, 64, 0)
    (batch,) = step_rows.whole_batches(batches, 1)
    items, target, lengths = step_rows.padded(batch, DATA.max_len, batch.size + 2)
    assert items.shape == target.shape == (batch.size + 2, DATA.max_len)
    assert lengths[-2:].tolist() == [0, 0]
    mask = torch.arange(DATA.max_len) < lengths[:, None]
    assert torch.equal(items[mask], batch.items) and torch.equal(target[mask], batch.target)
    assert not items[~mask].any() and not target[~mask].any()


def test_errors_are_results(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(step_rows, "make_ours", broken)
    record = step_rows.measure_row(Row(ALL, OURS), "cpu", LITTLE, DATA)
    assert (record["status"], record["fault"]) == ("failed", "RuntimeError: no kernel image")
    monkeypatch.setattr(
        step_rows, "make_ours", lambda *args: step_rows.Steps(lambda: None, lambda: float("nan"))
    )
    record = step_rows.measure_row(Row(ALL, OURS), "cpu", LITTLE, DATA)
    assert (record["status"], record["fault"]) == ("failed", "the loss is nan")


def test_a_note_of_the_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = step_rows.Steps(lambda: None, lambda: 1.0, "note: steps run without CUDA graphs")
    monkeypatch.setattr(step_rows, "make_ours", lambda *args: steps)
    record = step_rows.measure_row(Row(ALL, OURS), "cpu", LITTLE, DATA)
    assert (record["status"], record["note"]) == ("passed", steps.note)


# The order and the time


def fake_record(row: Row, *args: Any) -> dict[str, Any]:
    return {"setting": row.setting.name, "way": row.way, "status": "passed", "ms": 2.0}


def test_every_row_is_saved_as_soon_as_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_step, "measure_row", fake_record)
    monkeypatch.setattr(whole_step.PeerProcess, "measure", lambda self, row, seconds: fake_record(row))
    saved = []
    rows = whole_step.rows(quick=False)
    details = whole_step.run_rows(rows, "cpu", 1000, lambda found: saved.append(len(found["rows"])))
    assert saved == list(range(1, len(rows) + 1))
    assert [(row["setting"], row["way"]) for row in details["rows"]] == [
        (r.setting.name, r.way) for r in rows
    ]
    assert rows[0] == Row(SETTINGS["last bf16"], OURS)
    ways = [(OURS, WITHOUT_GRAPHS), (PLAIN,), (COMPILED,)]
    order = [next(i for i, group in enumerate(ways) if row.way in group) for row in rows]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    assert whole_step.judge(details)[0] == "passed"


def test_rows_without_time_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_step, "measure_row", fake_record)
    rows = [Row(ALL, OURS, 5.0), Row(ALL, WITHOUT_GRAPHS, 100.0), Row(ALL, COMPILED, 60.0)]
    details = whole_step.run_rows(rows, "cpu", 30, lambda found: None)
    assert [row["status"] for row in details["rows"]] == ["passed", "not run", "not run"]
    status, summary = whole_step.judge(details)
    assert status == "passed"
    assert summary == f"ms a step: {ALL.name}: ours 2.00, without graphs: no time left"
    details["rows"][0] = {"setting": ALL.name, "way": OURS, "status": "failed", "fault": "no memory"}
    assert whole_step.judge(details)[0] == "failed"


def stuck(connection: Any, what: str) -> None:
    """Stands in for `serve`."""
    connection.recv()
    if what == "ends":
        os._exit(3)
    time.sleep(60)


@pytest.mark.parametrize("what, fault", [("ends", "its process ended"), ("hangs", "took more than 1 s")])
def test_a_peer_cannot_stop_the_step(what: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_step, "serve", stuck)
    process = whole_step.PeerProcess(what)
    record = process.measure(Row(ALL, PLAIN), 20 if what == "ends" else 1)
    assert (record["status"], record["fault"]) == ("not run", fault)
    assert process.process is None


def test_quick_measures_little() -> None:
    rows = whole_step.rows(quick=True)
    assert len(rows) < len(whole_step.rows(quick=False)) / 2
    assert all(row.way != COMPILED for row in rows)


# Kinds of kernels


@pytest.mark.parametrize(
    "name, kind",
    [
        (
            "void recgrela::cuda::(anonymous namespace)::embedding_sums_kernel<Shape<4>>(Plan)",
            "recgrela embedding_sums",
        ),
        ("void recgrela::cuda::rela_forward_kernel<float, 16>(RelaPlan)", "recgrela rela_forward"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "LayerNorm"),
        ("void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float>", "LayerNorm"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_64x64>", "products"),
        ("nvjet_tst_128x64_64x10_1x2_h_bz_TNT", "products"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, sum_functor>>", "sums"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>",
            "additions",
        ),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "casts and copies",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>", "activations"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::AUnaryFunctor>", "other elementwise"),
        (
            "void at::native::(anonymous namespace)::fused_dropout_kernel_vec<float>",
            "dropout and random numbers",
        ),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "Adam"),
        ("Memcpy HtoD (Pageable -> Device)", "Memcpy and Memset"),
        ("triton_per_fused_native_layer_norm_3", "Triton"),
        ("unknown", "other"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str) -> None:
    assert breakdown.kind_of(name) == kind


def test_only_kernels_of_the_device_count() -> None:
    def event(name: str, device: DeviceType, start: int, end: int, **more: Any) -> SimpleNamespace:
        elapsed = SimpleNamespace(elapsed_us=lambda: float(end - start))
        return SimpleNamespace(name=name, device_type=device, time_range=elapsed, **more)

    events = [
        event("cudaLaunchKernel", DeviceType.CPU, 0, 900),
        event("Optimizer.step#Adam.step", DeviceType.CUDA, 0, 900, is_user_annotation=True),
        event("void recgrela::cuda::mlp_forward_kernel<float>", DeviceType.CUDA, 0, 100),
        event("void recgrela::cuda::mlp_forward_kernel<float>", DeviceType.CUDA, 100, 300),
        event("nvjet_tst_128x64", DeviceType.CUDA, 300, 320, is_user_annotation=False),
    ]
    assert breakdown.by_kind(breakdown.on_device(events), 2) == {
        "recgrela mlp_forward": {"ms": pytest.approx(0.15), "launches": 1.0},
        "products": {"ms": pytest.approx(0.01), "launches": 0.5},
    }
