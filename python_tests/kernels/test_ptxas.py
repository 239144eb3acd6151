"""No CUDA kernel spills registers or has arrays in local memory, and the check of this can fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import ptxas
from tools.nvcc import find_nvcc, shorten

# Output of nvcc 13.0: a kernel without faults, one that spills, and the check of sequences with its stack.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8recgrela4cuda4fineI6__halfLi4EEEv8ConvArgs' for 'sm_80'
ptxas info    : Function properties for _ZN8recgrela4cuda4fineI6__halfLi4EEEv8ConvArgs
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 124 registers, used 1 barriers, 5120 bytes smem, 584 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compile time = 90.899 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8recgrela4cuda5spillEv' for 'sm_90'
ptxas info    : Function properties for _ZN8recgrela4cuda5spillEv
    24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 24 bytes cumulative stack size
ptxas info    : Compiling entry function '_ZN8recgrela4cuda22check_sequences_kernelILi1024EEEvi' for 'sm_90'
ptxas info    : Function properties for _ZN8recgrela4cuda22check_sequences_kernelILi1024EEEvi
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 0 barriers, 32 bytes cumulative stack size
"""


def test_the_parser_reads_every_number() -> None:
    fine, spill, check = ptxas.parse(REPORT)
    assert (fine.architecture, fine.registers, fine.shared, fine.stack) == ("sm_80", 124, 5120, 0)
    assert (spill.architecture, spill.registers, spill.stack) == ("sm_90", 128, 24)
    assert (spill.spill_stores, spill.spill_loads) == (20, 28)
    assert (check.stack, fine.fault, spill.fault, check.fault) == (32, "", "spills", "")


NO_SPILL = ("20 bytes spill stores, 28", "0 bytes spill stores, 0")


@pytest.mark.parametrize("change", [None, NO_SPILL, "no kernel"])
def test_a_spill_a_stack_and_an_empty_report_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object
) -> None:
    report = REPORT.replace(*change) if isinstance(change, tuple) else change or REPORT
    (tmp_path / "build.log").write_text(str(report))
    assert ptxas.main(["--report", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert ("SPILLS" in printed, "STACK" in printed) == (change is None, isinstance(change, tuple))


def test_a_report_without_faults_passes(tmp_path: Path) -> None:
    (tmp_path / "build.log").write_text(REPORT[: REPORT.index("_ZN8recgrela4cuda5spill")])
    assert ptxas.main(["--report", str(tmp_path / "build.log")]) == 0


def test_names_are_shortened() -> None:
    name = "void recgrela::cuda::(anonymous namespace)::fine<__half, (bool)1>(recgrela::cuda::ConvArgs)"
    assert shorten(name) == "fine<__half, (bool)1>"


def test_no_kernel_spills(capsys: pytest.CaptureFixture[str]) -> None:
    if not os.environ.get("RECGRELA_PTXAS_REPORT") and find_nvcc() is None:
        pytest.skip("no nvcc: CUDA_HOME, PATH and the pip packages have none")
    failed = ptxas.main([])
    assert not failed, capsys.readouterr().out
