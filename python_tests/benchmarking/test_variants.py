"""Variants of the CUDA kernels: macros, libraries, checks and times, on the SIMT host."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.variants import __main__ as command
from benchmarks.gpu.variants import build, results
from benchmarks.gpu.variants.build import Builder, gpu_compiler
from benchmarks.gpu.variants.knobs import VALUES, Variant, variants
from benchmarks.gpu.variants.results import Row, advice, best_of, by_size, ratios, wrong
from python_tests.support.project import ROOT
from tools.nvcc import find_nvcc
from tools.tuning import KERNELS, defaults, macro

OPS = list(VALUES)


@pytest.mark.parametrize("op", OPS)
def test_every_macro_of_tuning_h_has_values(op: str) -> None:
    found = defaults(op)
    tried = [dict(variant.macros) for variant in variants(op)]
    assert tried[0] == {} and len(tried) <= command.parse([]).variants
    assert {name for macros in tried for name in macros} == set(found)
    for macros in tried[1:]:
        assert all(found[name] != value for name, value in macros.items()), macros
    for name, values in VALUES[op].items():
        assert found[name] in values, name


@pytest.mark.parametrize("op", [op for op in OPS if defaults(op)])
def test_every_macro_is_read_and_used(op: str) -> None:
    text = (KERNELS / op / "tuning.h").read_text()
    names = {macro(op, name) for name in defaults(op)}
    assert names == set(re.findall(r"#define (\w+)", text))
    used = "\n".join(path.read_text() for path in (KERNELS / op).glob("**/*.cu*"))
    assert [name for name in names if name not in used] == []


def test_a_variant_changes_one_macro_or_a_combination() -> None:
    values = {"ROWS": (2, defaults("causal_conv1d")["ROWS"], 8)}
    found = variants("causal_conv1d", values, [{"ROWS": 8, "THREADS": 64}])
    assert [variant.name for variant in found] == ["default", "ROWS=2", "ROWS=8", "ROWS=8,THREADS=64"]
    assert found[1].defines == ["-DRECGRELA_CAUSAL_CONV1D_ROWS=2"] and found[0].defines == []
    assert found[3].defines == ["-DRECGRELA_CAUSAL_CONV1D_ROWS=8", "-DRECGRELA_CAUSAL_CONV1D_THREADS=64"]


def row(
    variant: str, us: float, difference: float | None = 0.0, case: str = "a", dtype: str = "float32"
) -> Row:
    return Row("linear_scan", case, dtype, "forward", variant, us, us, difference)


ROWS = [
    row("default", 10),
    row("ROWS=2", 8, 1e-6),
    row("ROWS=8", 1, 1e-3),  # fast and wrong
    row("default", 10, case="b"),
    row("ROWS=2", 11, 1e-6, "b"),
    row("ROWS=8", 1, None, "b"),
]


def test_the_fastest_right_variant_is_named() -> None:
    assert wrong(ROWS) == {("linear_scan", "ROWS=8")}
    a, b = by_size(ROWS).values()
    assert (best_of(a, wrong(ROWS)).variant, best_of(b, wrong(ROWS)).variant) == ("ROWS=2", "default")
    assert ratios(ROWS)["linear_scan"]["ROWS=2"] == pytest.approx((0.8 * 1.1) ** 0.5)
    bad, best = advice(ROWS)
    assert bad.startswith("linear_scan ROWS=8: results differ") and "None" in bad
    assert 'RECGRELA_NVCC_FLAGS="-DRECGRELA_LINEAR_SCAN_ROWS=2"' in best
    (best,) = advice([row("default", 10), row("ROWS=2", 12)])
    assert best == "linear_scan: the default is the fastest over all sizes"
    assert results.table_of(ROWS).row_count == 2
    assert not row("x", 1, 1e-3).agrees and row("x", 1, 1e-3, dtype="bfloat16").agrees


def test_only_what_is_out_of_date_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(command: list[object]) -> None:
        ran.append(Path(str(command[-1])).name)
        Path(str(command[-1])).write_text("")

    monkeypatch.setattr(build, "run", run)
    compiler = build.Compiler(("cc",), (), ("-shared",), tmp_path)
    pair = [Variant("linear_scan"), Variant("linear_scan", (("WARPS", 8),))]
    builder = Builder(compiler, "float32")
    builder.build(pair)
    libraries = [builder.library(variant).name for variant in pair]
    assert libraries == ["linear_scan-default-float32.so", "linear_scan-WARPS8-float32.so"]
    assert {*libraries, "runner"} < set(ran) and ran.count("linear_scan_float32.o") == 2
    assert "linear_scan_bfloat16.o" not in ran and len(ran) == 9
    ran.clear()
    builder.build(pair)
    assert ran == []
    other = build.Compiler(("cc", "-g"), (), ("-shared",), tmp_path)
    Builder(other, "float32").build(pair[:1])
    assert libraries[0] in ran and libraries[1] not in ran


def test_a_library_has_every_unit_of_its_operator() -> None:
    for op in OPS:
        every = {path.name for path in build.units(op, None)}
        assert every == {path.name for path in (KERNELS / op).glob("**/*.cu")}
        one = {path.name for path in build.units(op, "bfloat16")}
        assert one < every and not any("float32" in name or "_float16" in name for name in one)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")
def test_variants_run_on_the_simt_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command: two variants of causal_conv1d give the same results."""
    options = ["--simt", "--op", "causal_conv1d", "--dtype", "float32", "--variants", "2"]
    assert command.main([*options, "--json", str(tmp_path / "times.json")]) == 0
    printed = capsys.readouterr().out
    assert "built variants (causal_conv1d 2)" in printed and "over all sizes" in printed
    record = json.loads((tmp_path / "times.json").read_text())
    names = [variant.name for variant in variants("causal_conv1d")[:2]]
    rows = [Row(**one) for one in record["rows"]]
    assert [(row.direction, row.variant) for row in rows] == [
        (direction, name) for direction in ("forward", "backward") for name in names
    ]
    assert all(row.agrees and row.us > 0 for row in rows) and record["device"] == "SIMT host"


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler")
def test_a_faulty_library_is_noticed(tmp_path: Path) -> None:
    """The exponential function of the second library is a sine."""
    fault = tmp_path / "fault.h"
    fault.write_text("#include <cmath>\n#include <complex>\n#include <random>\n#define exp2 sin\n")
    right = Builder(build.simt_compiler(), "float32")
    command = (*right.compiler.command, "-include", str(fault))
    faulty = Builder(replace(right.compiler, command=command, folder=tmp_path), "float32")
    variant = Variant("causal_conv1d")
    libraries = []
    for name, builder in (("default", right), ("THREADS=64", faulty)):
        builder.build([variant])
        libraries.append(f"{name}={builder.library(variant)}")
    arguments = [str(right.program), "causal_conv1d", "float32", "1", "2", *libraries]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    rows = [Row(op="causal_conv1d", **json.loads(line)) for line in done.stdout.splitlines()]
    assert [row.agrees for row in rows] == [True, False] * 2


def test_without_a_gpu_only_building_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_nvcc() is None:
        pytest.skip("no nvcc")
    import torch

    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    monkeypatch.setattr(command, "variants", lambda op: [Variant(op)])
    builder = Builder(gpu_compiler("90"))
    builder.build([])  # the program alone
    args = command.parse(["--op", "linear_scan"])
    with pytest.raises(SystemExit, match="there is no GPU; --build-only builds without one"):
        command.run_op(builder, [Variant("linear_scan")], "float32", args, 10)
    assert builder.program.is_relative_to(ROOT / "build")
