"""Counts of instructions from machine code: loops, paths, division by work, records, and executed counts."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from python_tests.support.project import ROOT
from tools.instructions import __main__ as command
from tools.instructions import cubins, forms, record, report
from tools.instructions.disassembly import Code, Instruction, parse
from tools.instructions.forms import every
from tools.instructions.graph import blocks_of, immediate_dominators, loops_of
from tools.instructions.kernels import CHUNK, ROW, Form, Instance, Kernel, instance_of
from tools.instructions.kinds import kind_of, work_of
from tools.instructions.paths import count, total
from tools.nvcc import find_nvcc

GOLDEN = ROOT / "python_tests/golden"
SHARED = Path(os.environ.get("RECGRELA_SHARED", "/nonexistent")) / "gpu"
SUMS_NAME = "_ZN8recgrela4cuda11sums_kernelIfLi16EEEvPKT_S4_PS2_ii"
# 4 rows of an iteration, and 2 iterations of the inner loop a row.
FORM = Form(5, {1: every(4), 2: every(1 / 2)})
SUMS = Kernel("sums", "forward", ROW, lambda instance: f"size {instance.size}", (FORM,), lambda instance: 2.0)


@pytest.fixture
def code() -> Code:
    (found,) = parse((GOLDEN / "nvdisasm.txt").read_text())
    return found


def instruction(text: str) -> Instruction:
    (found,) = parse(f"\t.section .text.k\n /*0000*/ {text} ;\n")
    return found.instructions[0]


def test_the_parser_reads_every_instruction(code: Code) -> None:
    assert code.name == SUMS_NAME
    assert len(code.instructions) == 152 and len(code.labels) == 14
    assert instruction("@!P0 BRA `(.L_x_3)") == Instruction("@!P0", "BRA", "`(.L_x_3)")
    assert instruction("@UP1 UIADD3 UR4, UR4, 0x1, URZ").predicate == "@UP1"
    assert instruction("BRA P1, `(.L_x_3)").is_conditional and not instruction("BRA `(.L_x_3)").is_conditional


def test_loops_are_found_and_nested(code: Code) -> None:
    """There are three copies of the loop over tiles: with a bias, without one, without products."""
    blocks = blocks_of(code)
    assert [[len(inner.inner) for inner in loop.inner] for loop in [loops_of(blocks)]] == [[1, 0, 1]]
    dominator = immediate_dominators(blocks)
    for loop in loops_of(blocks).nest():
        for block in loop.blocks:
            while block != loop.header:
                assert block != dominator[block]
                block = dominator[block]


def test_paths_through_an_iteration(code: Code) -> None:
    kernel = count(code)
    with_bias, without_products, without_bias = kernel.inner
    # The path past the inner loop, and the one that sets it up with 4 instructions.
    assert [total(x) for x in (with_bias.shortest, with_bias.full, with_bias.longest)] == [36, 36, 40]
    assert total(with_bias.every) == 46 and total(with_bias.inner[0].full) == 6
    assert (with_bias.full["special"], with_bias.full["global"]) == (4, 6)
    assert with_bias.full["math"] == 4 + 5  # exponentials and additions
    assert (without_bias.full["global"], without_products.full["global"]) == (5, 5)
    assert total(kernel.shortest) == 14  # no tiles: the thread ends at once
    # A limit on accesses excludes a path; there is none here without the bias.
    assert total(count(code, {1: 5}).inner[0].full) == 0
    assert total(count(code, {1: 6}).inner[0].full) == 36


BRANCHES = """
	.section .text.branches
.L_x_0:
 /*0000*/ ISETP.NE.AND P0, PT, R0, RZ, PT ;
 /*0010*/ @P0 BRA `(.L_x_1) ;
 /*0020*/ LDG.E.128 R4, desc[UR4][R2.64] ;
 /*0030*/ BRA `(.L_x_2) ;
.L_x_1:
 /*0040*/ LDG.E R4, desc[UR4][R2.64] ;
 /*0050*/ LDG.E R5, desc[UR4][R2.64+0x4] ;
 /*0060*/ LDG.E R6, desc[UR4][R2.64+0x8] ;
 /*0070*/ LDG.E R7, desc[UR4][R2.64+0xc] ;
.L_x_2:
 /*0080*/ BRA.DIV UR6, `(.L_x_3) ;
 /*0090*/ @P1 BRA `(.L_x_0) ;
 /*00a0*/ EXIT ;
.L_x_3:
 /*00b0*/ WARPSYNC.COLLECTIVE R9, `(.L_x_2) ;
 /*00c0*/ BRA `(.L_x_0) ;
"""


def test_a_full_path_loads_wide_and_stays_converged() -> None:
    """Four narrow loads do as much work as a wide one; the shorter path is taken."""
    (code,) = parse(BRANCHES)
    (loop,) = count(code).inner
    assert (total(loop.shortest), total(loop.full), total(loop.longest)) == (6, 6, 8)
    assert loop.full["global"] == 1 and total(loop.every) == 10  # without what diverged warps do


def test_kinds() -> None:
    kinds = {
        "HMMA.16816.F32.BF16 R4, R8, R12, R4": "tensor",
        "MUFU.EX2 R4, R4": "math",
        "F2FP.BF16.F32.PACK_AB R4, R5, R4": "math",
        "HFMA2.MMA R4, -RZ, RZ, 0, 0": "integer",
        "HFMA2.BF16 R4, R5, R6, R7": "math",
        "IMAD.WIDE.U32 R4, R5, R6, R8": "integer",
        "LDSM.16.M88.4 R4, [R8]": "memory",
        "BAR.SYNC.DEFER_BLOCKING 0x0": "control",
    }
    assert {text: kind_of(instruction(text)) for text in kinds} == kinds
    loads = ("LDG.E.128 R4, [R2]", "LDG.E.U16 R4, [R2]", "STG.E [R2], R4", "LDGSTS.E.BYPASS.128 [R4], [R2]")
    assert [work_of(instruction(text)) for text in loads] == [16, 2, 4, 16]
    assert work_of(instruction("LDS.128 R4, [R2]")) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rela_forward_kernel<__nv_bfloat16, 64>", Instance("rela_forward_kernel", "bfloat16", (64,))),
        ("scan_forward_kernel<float, true, (bool)0>", Instance("scan_forward_kernel", "float32", (1, 0))),
        ("add_parts_kernel<1024>", None),
        ("sums<float, Shape<4, 2> >", Instance("sums", "float32", (4, 2))),
        ("sums<float, (Scan)2>", Instance("sums", "float32", (2,))),
        ("sums<float, Row>", None),
    ],
)
def test_names_are_read(name: str, expected: Instance | None) -> None:
    assert instance_of(name) == expected


def listing_of(code: Code) -> record.Listing:
    (listing,) = record.list_kernels([code], {code.name: cubins.Resources(30, 128)})
    return listing


def test_counts_are_divided_by_the_work_of_an_iteration(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forms.KERNELS, "sums_kernel", SUMS)
    counts = listing_of(code).counts
    assert counts is not None and (counts.kernel, counts.sizes, counts.registers) == (
        "sums_kernel",
        (16,),
        30,
    )
    assert counts.total == (36 / 4 + 6 * 2) / 2
    assert counts.special == 4 / 4 / 2 and counts.unit == ROW


@pytest.mark.parametrize("form", [Form(4, {1: every(4)}), Form(5, {3: every(4)})])
def test_a_form_that_does_not_fit_is_not_used(
    code: Code, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    """The number of loops differs, or the loop with the most arithmetic is not counted."""
    monkeypatch.setitem(forms.KERNELS, "sums_kernel", replace(SUMS, forms=(form,)))
    listing = listing_of(code)
    assert listing.counts is None and len(listing.loops) == 6
    console = Console(file=io.StringIO(), width=200)
    report.show(console, [listing], loops=False)
    assert "sums_kernel<float, 16>, 30 registers" in console.file.getvalue()


def test_records_and_comparisons(code: Code, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(forms.KERNELS, "sums_kernel", SUMS)
    counts = report.known([listing_of(code)] * 2)
    record.write_record(tmp_path / "a.json", counts, "90", "abc")
    assert record.read_record(tmp_path / "a.json") == ("abc", counts)
    console = Console(file=io.StringIO(), width=200)
    for table in report.comparison_tables(counts, counts, "abc"):
        console.print(table)
    assert len(counts) == 1 and "10.5" in console.file.getvalue() and "1.00" in console.file.getvalue()


def test_kernels_of_the_table_are_in_the_sources() -> None:
    text = "\n".join(path.read_text() for path in ROOT.glob("csrc/kernels/**/*.cuh"))
    missing = [name for name in forms.KERNELS if not re.search(rf"\b{name.split('::')[-1]}\(", text)]
    assert missing == [], "tools/instructions/forms.py names kernels that are gone"


def test_files_without_kernels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.o").write_text("no ELF")
    with pytest.raises(ValueError, match=r"x\.o is no cubin, object or library; compile it first"):
        cubins.read_cubins(tmp_path / "x.o", 90)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample kernel as a cubin and an object, and the report of ptxas."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    folder = tmp_path_factory.mktemp("cubins")
    source = GOLDEN / "sums_kernel.cu"
    one = ["-gencode=arch=compute_90,code=sm_90"]
    two = [*one, "-gencode=arch=compute_80,code=[sm_80,compute_80]"]
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas", "-v"]
    subprocess.run(
        [*command, *one, "-cubin", source, "-o", folder / "a.cubin"], check=True, capture_output=True
    )
    done = subprocess.run(
        [*command, *two, "-c", source, "-o", folder / "a.o"], check=True, capture_output=True
    )
    (folder / "report").write_bytes(done.stderr)
    return folder


def test_machine_code_is_found_in_objects(compiled: Path) -> None:
    (whole,) = cubins.read_cubins(compiled / "a.cubin", 90)
    (inside,) = cubins.read_cubins(compiled / "a.o", 90)
    texts = [next(s.data for s in cubins.sections(x) if s.name.startswith(".text.")) for x in (whole, inside)]
    assert texts[0] == texts[1] != b""
    (other,) = cubins.read_cubins(compiled / "a.o", 80)
    assert other != inside
    with pytest.raises(ValueError, match="no kernels for sm_75"):
        cubins.read_cubins(compiled / "a.o", 75)


def test_registers_are_those_of_ptxas(compiled: Path) -> None:
    (cubin,) = cubins.read_cubins(compiled / "a.o", 90)
    said = re.search(r"for 'sm_90'.*?Used (\d+) registers", (compiled / "report").read_text(), re.S)
    assert said and cubins.resources_of(cubin) == {SUMS_NAME: cubins.Resources(int(said[1]), 96)}


def test_the_command_reads_a_file(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        cubins.find_nvdisasm()
    except SystemExit:
        pytest.skip("no nvdisasm")
    assert command.main([str(compiled / "a.o")]) == 0
    assert "sums_kernel<float, 16>" in capsys.readouterr().out


# Executed instructions, measured on a GPU

PROFILES = {
    # by profile: iterations of each loop for a unit of 13 chunks, in the order of the code
    "forward_bf16_causal": {3: 13},
    "forward_fp32_causal": {3: 13},
    "backward_bf16_causal": {2: 12, 5: 13},
    "backward_fp32_causal": {2: 12, 5: 13},
}
CHUNKS = 13  # 200 rows


def profiled(path: Path) -> tuple[Code, list[int]]:
    """The code of a profiled kernel, and how often each instruction ran."""
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [row["instruction"] for row in rows]
    # The code ends with a branch to itself, whose target tells the address of the first instruction.
    last = max(i for i, text in enumerate(texts) if text.startswith("BRA"))
    base = int(texts[last].split()[-1], 16) - 16 * last
    code = Code(path.name)
    for text in texts:
        predicate, name, operands = re.fullmatch(r"(@!?U?P[0-9T]+\s+)?(\S+)\s*(.*)", text.strip()).groups()
        found = re.search(r"\b0x([0-9a-f]{8,})\b", operands) if name.startswith(("BRA", "BSSY")) else None
        if found:
            index = (int(found[1], 16) - base) // 16
            code.labels[f".L_x_{index}"] = index
            operands = operands.replace(found[0], f"`(.L_x_{index})")
        code.instructions.append(Instruction((predicate or "").strip(), name, operands))
    return code, [int(row["executed"]) for row in rows]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the profiles in RECGRELA_SHARED")
@pytest.mark.parametrize("name", PROFILES)
def test_counts_are_near_the_executed_ones(name: str) -> None:
    code, executed = profiled(SHARED / f"sass_{name}.tsv.gz")
    units = executed[0]
    loops = list(count(code).nest())
    assert total(loops[0].full) < 0.15 * sum(executed) / units
    counted = total(loops[0].full) + sum(n * total(loops[i].full) for i, n in PROFILES[name].items())
    assert counted / CHUNKS == pytest.approx(sum(executed) / units / CHUNKS, rel=0.02)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the profiles in RECGRELA_SHARED")
@pytest.mark.parametrize("name", PROFILES)
def test_kinds_are_near_the_executed_ones(name: str) -> None:
    code, executed = profiled(SHARED / f"sass_{name}.tsv.gz")
    loops = list(count(code).nest())
    counted = Counter(loops[0].full)
    for i, n in PROFILES[name].items():
        counted.update({key: n * value for key, value in loops[i].full.items()})
    ran: Counter[str] = Counter()
    for one, times in zip(code.instructions, executed, strict=True):
        ran[kind_of(one)] += times
    for kind in ("math", "tensor", "memory", "integer"):
        assert counted[kind] == pytest.approx(ran[kind] / executed[0], rel=0.1), kind


def test_units_of_the_table() -> None:
    assert {kernel.unit for kernel in forms.KERNELS.values()} == {CHUNK, ROW}
