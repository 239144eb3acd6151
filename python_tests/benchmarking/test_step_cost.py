"""The number of launches and bytes of a training step on a GPU, counted without one."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch.profiler import ProfilerActivity

from python_tests.support.project import ROOT
from recgrela.data import DataConfig, TrainBatches, load
from recgrela.models import RecGRELAConfig, build
from recgrela.settings.train import TrainConfig
from recgrela.training.losses import FullSoftmax
from recgrela.training.step import TrainStep
from tools.gpu_estimate import RECORD
from tools.gpu_estimate import Call as GpuCall
from tools.instructions.record import read_record
from tools.step_cost import instructions
from tools.step_cost.counting import Call, Counter, by_operator
from tools.step_cost.estimate import Device
from tools.step_cost.instructions import Issue, call_of, instructions_of, issue_of
from tools.step_cost.memory import Memory, PeakMemory
from tools.step_cost.report import step_table
from tools.step_cost.steps import Count

# Launches and bytes of memory of a step of 4 blocks, at most.
LAST_BF16 = 91
LAST_BF16_MEMORY = 1.85e9


def report(counts: dict[str, list[int]]) -> str:
    lines = (f"{name}: {launches} in {calls}" for name, (calls, launches, _) in counts.items())
    return "\n".join(["launches in calls:", *lines])


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")
@pytest.mark.skipif(
    torch.backends.cuda.is_built() and not torch.cuda.is_available(),
    reason="PyTorch for CUDA needs a GPU to differentiate tensors on CUDA",
)
def test_a_step_has_few_launches_and_fits_into_memory() -> None:
    command = [sys.executable, "-m", "tools.step_cost", "--json", "--settings", "last bf16"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    found = json.loads(result.stdout)["last bf16"]
    counts, memory = found["operators"], found["memory"]
    assert counts["recgrela.gated_rela"][0] == 3
    assert counts["_fused_adam_"][0] == 1
    assert "recgrela.linear_cross_entropy_backward" not in counts  # its gradients are those of the forward
    assert sum(launches for _, launches, _ in counts.values()) <= LAST_BF16, report(counts)
    assert 0 < memory["resident"] + memory["peak"] <= LAST_BF16_MEMORY, memory


def test_views_are_free_and_expanded_tensors_small() -> None:
    x, row = torch.empty(6, 4), torch.empty(4)
    with Counter("cpu") as counter:
        x.view(3, 8).t()[1:].reshape(-1)[:4]
        x + row.expand(6, 4)
    # The reshape copies 7 x 3 elements; the sum reads 24 and 4, and writes 24.
    assert counter.calls == [Call("clone", 1, 4 * 2 * 21), Call("add", 1, 4 * (24 + 4 + 24))]


def test_rows_of_a_table_count_instead_of_the_table() -> None:
    table, items = torch.empty(1000, 8), torch.zeros(5, dtype=torch.int64)
    with Counter("cpu") as counter:
        F.embedding(items, table)
        table[items]
        table.index_add_(0, items, torch.ones(5, 8))
    size = 5 * 8 + 2 * 5 * 8 * 4
    rows = 5 * 8 * 4
    assert counter.calls == [
        Call("embedding", 1, size),
        Call("index", 1, size),
        Call("ones", 1, rows),
        Call("index_add_", 1, 5 * 8 + 3 * rows),
    ]


def test_tensors_elsewhere_do_not_count() -> None:
    with Counter("meta") as counter:
        torch.empty(5).add(1).to("meta")
    assert counter.calls == [Call("_to_copy", 1, 20)]


def test_operators_on_lists_take_many_tensors_a_launch() -> None:
    tensors = [torch.empty(2) for _ in range(111)]
    with Counter("cpu") as counter:
        torch._foreach_add_(tensors, 1.0)
    assert counter.calls == [Call("_foreach_add_", 2, 111 * 8)]


def test_sums_by_operator() -> None:
    calls = [Call("a", 1, 5), Call("b", 2, 30), Call("a", 3, 7)]
    assert list(by_operator(calls).items()) == [("b", (1, 2, 30)), ("a", (2, 4, 12))]


# Memory


def allocated_at_most(function: Callable[[], object]) -> int:
    """The most bytes that the CPU's allocator gives to a function at a time."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())))


def test_the_peak_of_a_step_is_that_of_the_allocator() -> None:
    data = load(DataConfig(synthetic_users=100, synthetic_items=200, synthetic_events=40, max_len=30))
    config = RecGRELAConfig(hidden_size=32, num_heads=2, num_layers=2, mode="bidirectional", padding="attend")
    model = build(config, data.n_items, 30)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    train = TrainConfig(objective="last", batch_size=64)
    step = TrainStep(model, optimizer, FullSoftmax(), train, max_tokens=1 << 40)
    batch = next(iter(TrainBatches(data, "last", 30, 64, 0).epoch(0)))

    def take() -> None:
        step(batch, 1e-3)

    take()  # makes Adam's state and the rotary tables
    with PeakMemory("cpu") as memory:
        take()
    # The gradient of every parameter is freed at the end.
    assert memory.live == 0 and memory.peak > 4 * sum(p.numel() for p in model.parameters())
    # Operators on the CPU have no workspaces in the allocator.
    assert memory.peak == pytest.approx(allocated_at_most(take), rel=0.01)


def test_storages_count_once_until_they_are_freed() -> None:
    kept = torch.empty(100)
    with PeakMemory("cpu") as memory:
        kept.view(10, 10).t()
        assert memory.live == 0  # existed before
        x = torch.empty(10)
        y = x[2:].view(4, 2)
        assert memory.live == 40
        del x
        z = y + 1
        assert memory.live == 40 + 32
        del y
        kept.copy_(torch.cat([z.view(-1)] * 13)[:100])
    assert (memory.live, memory.peak, memory.operator) == (32, 32 + 13 * 32, "aten::cat")


# Estimates


@pytest.fixture
def measured_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of the commit that was profiled."""
    record = read_record(RECORD.with_name("instructions_h200.json"))
    monkeypatch.setattr(instructions, "recorded", lambda: record)


def rela_calls() -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Operands of a bidirectional forward and a causal backward on 2,048 sequences of 200 rows."""
    x = torch.empty(2048 * 200, 64, dtype=torch.bfloat16, device="meta")
    cu_seqlens, absent = torch.empty(2049, device="meta"), (None,) * 6
    forward = (x, x, x, x, cu_seqlens, *absent, 4, False, 1e-6, False)
    return forward, (x, None, None, None, x, x, x, x, cu_seqlens, *absent, 4, True, 1e-6)


def test_instructions_are_near_those_of_a_profile(measured_record: None) -> None:
    """The profile of gated_rela on 2,048 causal sequences of 200 rows counted 76.4 and 187.4 million."""
    forward, backward = rela_calls()
    issue = issue_of("gated_rela_backward", backward)
    assert issue.instructions == pytest.approx(187.4e6, rel=0.03) and issue.warps == 12
    causal = (*forward[:-3], True, 1e-6, False)
    assert issue_of("gated_rela", causal).instructions == pytest.approx(76.4e6, rel=0.03)
    # The bidirectional form is counted on the path of the causal one, and has another kernel.
    both = issue_of("gated_rela", forward)
    assert 76.4e6 < both.instructions < 1.4 * 76.4e6
    assert call_of("gated_rela", forward) == GpuCall(
        "gated_rela", "forward", "head 16", "bfloat16", "bidirectional", 2048, 200, 64
    )


def test_calls_of_the_scans_are_recognized() -> None:
    x, weight = torch.empty(50, 64, device="meta"), torch.empty(64, 3)
    states = torch.empty(64, 20)

    def variant(name: str, *args: object) -> tuple[str, str, str]:
        call = call_of(name, args)
        assert call is not None and (call.batch * call.length, call.width) == (50, 64)
        return call.direction, call.variant, call.dtype

    assert variant("causal_conv1d", x.half(), weight) == ("forward", "K 3", "float16")
    assert variant("causal_conv1d_backward", x, None, x, weight) == ("backward", "K 3", "float32")
    assert variant("linear_scan", x.cfloat(), x[0].cfloat()) == ("forward", "complex, constant", "float32")
    assert variant("linear_scan_backward", x, None, x) == ("backward", "real, each step", "float32")
    assert variant("selective_scan", x, x, states) == ("forward", "N 32", "float32")
    assert variant("selective_scan_backward", x, None, x, x, states[:, :3]) == ("backward", "N 8", "float32")
    assert call_of("add_norm", (x,)) is None


def test_instructions_of_other_operators_are_constants_of_a_row() -> None:
    x = torch.empty(2048 * 200, 64, dtype=torch.bfloat16, device="meta")
    stream, weight = torch.empty(x.shape, device="meta"), torch.empty(64, device="meta")
    assert instructions_of("add_norm", (stream, x, weight, weight, None)) == 62 * 2048 * 200
    assert instructions_of("add_norm", (stream, stream, weight, weight, None)) == 56 * 2048 * 200
    parameters = (weight,) * 6
    options = (None, None, 1e-5, "gelu", 0.0, 0.0, torch.bfloat16)
    assert instructions_of("mlp_block", (stream, x, *parameters, *options)) == 235 * 2048 * 200
    gradient = (stream, stream, *parameters, *options, True)
    assert instructions_of("mlp_block_backward", gradient) == 445 * 2048 * 200
    assert instructions_of("dropout", (stream, weight)) == 0  # not counted
    rows, weight = (torch.empty(n, 64, dtype=torch.bfloat16, device="meta") for n in (409_600, 64))
    assert instructions_of("linear", (rows, weight, None, weight, None)) == 25_600 * (74 + 2 * 152)
    gradient = (rows, None, None, rows, weight, None, None, None, True)
    assert instructions_of("linear_backward", gradient) == 6_400 * 8 * 280
    assert instructions_of("linear", (rows.float(), weight, None, weight, None)) == 25_600 * 2 * (
        148 + 2 * 311
    )
    assert (
        instructions_of("linear_backward", (None, None, None, rows.float(), *gradient[4:]))
        == 12_800 * 4 * 827
    )
    wide = torch.empty(100, 128, device="meta")
    assert instructions_of("linear", (wide, weight, None, None, None)) == 0  # not counted
    target = torch.empty(100, dtype=torch.int64)
    scores = (rows[:100], torch.empty(33, 64), target, None, torch.bfloat16, 0.0, 1, True, True)
    assert instructions_of("linear_cross_entropy", (*scores, False)) == 7 * 3 * 139
    assert instructions_of("linear_cross_entropy", (*scores[:-1], False, False)) == 0  # not counted


def test_instructions_of_rela_projections_depend_on_the_layers() -> None:
    x, weight = torch.empty(409_600, 64, device="meta"), torch.empty(64, 64)
    v, qk_weight, norm = x.bfloat16(), torch.empty(128, 64), (None, None)
    projections = (x, *norm, weight, None, weight, None, qk_weight, None, 1e-12, torch.bfloat16)
    assert instructions_of("rela_projections", projections) == 25_600 * (481 + 174 + 4 * 66)
    gradient = (None, None, v, v, x, v, *norm, weight, weight, qk_weight, 1e-12)
    assert instructions_of("rela_projections_backward", gradient) == 6_400 * (8 * 873 + 8 * 127)
    of_last = (None, v, None, v, x, v, *norm, weight, None, weight, 1e-12)
    assert instructions_of("rela_projections_backward", of_last) == 6_400 * (8 * 763 + 4 * 127)


def test_an_estimate_is_the_larger_of_two_times() -> None:
    device = Device()
    by_bytes = device.estimate(Call("a", 2, 4_205_000))
    assert (by_bytes.low, by_bytes.by_instructions) == (pytest.approx(1.0), 0)
    assert by_bytes.high == pytest.approx(2.0 + 2 * device.launch_us)
    by_instructions = device.estimate(Call("b", 0, 4_205_000, Issue(132 * 4 * 1755 * 100)))
    assert by_instructions.low == pytest.approx(100 / 0.61) == pytest.approx(by_instructions.by_instructions)
    assert by_instructions.high == pytest.approx(100 / 0.44)
    few_warps = device.estimate(Call("b", 0, 0, Issue(132 * 4 * 1755 * 100, 10)))
    assert (few_warps.low, few_warps.high) == (
        pytest.approx(100 / (1 - 0.8**2.5)),
        pytest.approx(100 / (1 - 0.9**2.5)),
    )
    total = device.total([Call("a", 2, 4_205_000)] * 3)
    assert (total.low, total.by_bytes) == (pytest.approx(3.0), pytest.approx(3.0))


def test_the_report_has_estimates_beside_measured_times() -> None:
    calls = [Call("recgrela.gated_rela", 3, 10**6), Call("native_layer_norm", 1, 10**6)] * 2
    console = Console(file=io.StringIO(), width=200)
    count = Count(calls, Memory(5_200_000, 2_000_000_000, "recgrela::mlp"))
    console.print(step_table("last bf16", count, Device()))
    text = console.file.getvalue()
    assert "memory: 5.2 MB of parameters and optimizer + 2,000.0 MB at the peak, in recgrela.mlp" in text
    assert "549" in text  # two calls of gated_rela, measured
    assert "recgrela 6.226 ms" in " ".join(text.split())
