"""Estimates of device time from counts, against the times that were measured."""

from __future__ import annotations

import re
import statistics

import pytest

from python_tests.support.project import ROOT
from tools import gpu_estimate, speed_tables
from tools.gpu_estimate import FIGURES_BEFORE, RECORD, Call, Gpu, errors, fit
from tools.instructions.record import KernelCounts, read_record

BEFORE, PROFILED = (RECORD.with_name(f"instructions_{name}.json") for name in ("before", "h200"))


@pytest.fixture(scope="module")
def measured() -> list[KernelCounts]:
    return read_record(RECORD)[1]


def test_every_measured_call_is_estimated(measured: list[KernelCounts]) -> None:
    gpu = Gpu()
    assert set(errors(gpu, measured)) == set(gpu.measured) and len(gpu.measured) == 36


def test_estimates_are_as_far_off_as_the_documentation_says(measured: list[KernelCounts]) -> None:
    text = " ".join((ROOT / "docs/speed.md").read_text().split())
    predicted = re.search(r"off by (\d+) % in the median and (\d+) % at most", text)
    fitted = re.search(r"the error is (\d+) % in the median and (\d+) % at most", text)
    for gpu, said in ((Gpu(constants=FIGURES_BEFORE), predicted), (Gpu(), fitted)):
        found = [abs(error) for error in errors(gpu, measured).values()]
        assert said and [int(said[1]), int(said[2])] == [
            round(100 * value) for value in (statistics.median(found), max(found))
        ]


def test_the_constants_are_fitted(measured: list[KernelCounts]) -> None:
    gpu = Gpu()
    assert fit(gpu, measured) == (gpu.ready, gpu.byte_share)


def test_a_call_takes_the_longer_of_two_times(measured: list[KernelCounts]) -> None:
    gpu = Gpu()
    few = Call("linear_scan", "forward", "complex, constant", "float32", "", 1, 1000, 64)
    assert few.bytes == 2 * 1000 * 64 * 8
    times = gpu.times(few, measured)
    assert times is not None and times.us == times.by_bytes == pytest.approx(
        few.bytes / 4.205e6 / gpu.byte_share
    )
    head = Call("gated_rela", "backward", "head 128", "float32", "causal", 2, 17, 128)
    (kernel,) = head.kernels(measured)
    # 8 warps a sequence, 2 chunks each.
    assert head.instructions(kernel) == 2 * 8 * (2 * kernel.total + kernel.once)
    times = gpu.times(head, measured)
    rate = 132 * 1755 * 4 * (1 - (1 - gpu.ready) ** (kernel.warps / 4))
    assert times is not None and times.us == pytest.approx(head.instructions(kernel) / rate)
    assert gpu.times(Call("gated_rela", "forward", "head 7", "float32", "causal", 1, 1, 7), measured) is None


def test_the_bidirectional_form_has_more_kernels(measured: list[KernelCounts]) -> None:
    kernels = {
        form: {
            k.kernel
            for k in Call("gated_rela", "backward", "head 16", "float16", form, 1, 9, 16).kernels(measured)
        }
        for form in ("causal", "bidirectional")
    }
    assert kernels["causal"] < kernels["bidirectional"]


def test_kernels_of_the_record_are_in_the_sources() -> None:
    text = "\n".join(path.read_text() for path in ROOT.glob("csrc/kernels/**/*.cuh"))
    names = {kernel.kernel.split("::")[-1] for kernel in read_record(RECORD)[1]}
    missing = [name for name in names if not re.search(rf"\b{name}\(", text)]
    assert missing == [], (
        "count again: python -m tools.instructions --json benchmarks/results/instructions.json"
    )


def test_records_have_a_commit_and_every_operator() -> None:
    for path in (RECORD, BEFORE, PROFILED):
        commit, kernels = read_record(path)
        assert re.fullmatch(r"[0-9a-f]{7,}", commit), f"{path.name} is not of a commit"
        assert {k.op for k in kernels} == {"gated_rela", "causal_conv1d", "linear_scan", "selective_scan"}


def test_tables_of_the_documentation_are_those_of_the_records() -> None:
    page = speed_tables.PAGE.read_text()
    assert speed_tables.updated(page) == page, "run python -m tools.speed_tables"


@pytest.mark.parametrize("option", ["--predicted", "--record"])
def test_the_command_prints_estimates(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_estimate.main([option] if option == "--predicted" else [option, str(BEFORE)]) == 0
    printed = capsys.readouterr().out
    assert "Estimates from counts" in printed and "gated_rela backward, head 128, causal, float32" in printed
    assert "(median)" in printed
