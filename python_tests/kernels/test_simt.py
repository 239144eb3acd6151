"""The CUDA sources on the CPU, thread by thread under sanitizers, against the CPU kernels; and that these
tests would notice: each mutation below breaks a kernel and must be found."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from python_tests.support.simt import ROOT, build_simt, program, run


@pytest.fixture(scope="module")
def build() -> Path:
    return build_simt("simt_selftest", "ops_test")


@pytest.mark.parametrize(
    "test", ["simt_selftest", "causal_conv1d", "gated_rela", "linear_scan", "selective_scan"]
)
def test_kernels(build: Path, test: str) -> None:
    run(program("ctest") or "ctest", "--output-on-failure", "--no-tests=error", "-R", f"^{test}$", cwd=build)


@dataclass
class Mutation:
    name: str
    file: str  # under csrc/kernels
    unit: str  # the source to compile again
    old: str  # occurs once
    new: str
    cases: str  # parts of their names


CONV, SCAN = "causal_conv1d/causal_conv1d.cu", "linear_scan/linear_scan.cu"
RELA, F32 = "gated_rela/gated_rela.cu", "gated_rela/gated_rela_float32.cu"
SELECTIVE, SELECTIVE_F32 = "selective_scan/selective_scan.cu", "selective_scan/selective_scan_float32.cu"
BF16, BF16_BACKWARD = "gated_rela/gated_rela_bfloat16.cu", "gated_rela/gated_rela_bfloat16_backward.cu"
MUTATIONS = [
    Mutation(
        "the notes are read before all are written",
        "causal_conv1d/causal_conv1d.cu",
        CONV,
        "static_cast<int32_t>(i - 1);\n  }\n  __syncthreads();",
        "static_cast<int32_t>(i - 1);\n  }",
        "causal_conv1d schedules",
    ),
    Mutation(
        "the sums are read before all are written",
        "causal_conv1d/causal_conv1d.cu",
        CONV,
        "sums[warp][lane] = sum;\n  __syncthreads();",
        "sums[warp][lane] = sum;",
        "causal_conv1d schedules",
    ),
    Mutation(
        "the gradient's first row is left out",
        "causal_conv1d/causal_conv1d.cu",
        CONV,
        "if (row >= K - 1) store_row",
        "if (row > K - 1) store_row",
        "causal_conv1d float32",
    ),
    Mutation(
        "a gradient crosses into the sequence before",
        "causal_conv1d/causal_conv1d.cu",
        CONV,
        "depth = 0;\n          }",
        "depth = 1;\n          }",
        "causal_conv1d L=3,0,40",
    ),
    Mutation(
        "the last wait for copies is a group short",
        "gated_rela/team.cuh",
        BF16,
        "copies_wait<1>();",
        "copies_wait<2>();",
        "gated_rela bfloat16/d=16 L=33,2,18",
    ),
    Mutation(
        "a stage is filled while it is read",
        "gated_rela/team.cuh",
        F32,
        "i % 2 : 0);\n    team.sync();",
        "i % 2 : 0);",
        "gated_rela float32/d=64 schedules",
    ),
    Mutation(
        "the denominators are read before all warps have put theirs",
        "gated_rela/forward.cuh",
        BF16,
        "team.sync();\n    denominator =",
        "denominator =",
        "gated_rela/causal/bfloat16/d=64",
    ),
    Mutation(
        "features are read before they are written",
        "gated_rela/key_sums.cuh",
        BF16,
        "team.sync();\n    add_keys(",
        "add_keys(",
        "gated_rela/bidirectional/bfloat16/d=64",
    ),
    Mutation(
        "the chunk's current row does not count",
        "common/tile.cuh",
        BF16,
        "if (col + e > row)",
        "if (col + e >= row)",
        "gated_rela/causal/bfloat16/d=16",
    ),
    Mutation(
        "the convolution is a row late",
        "gated_rela/forward.cuh",
        BF16,
        "(tile_row(team.lane, 2 * h) - kMaxHistory) * T::kStride",
        "(tile_row(team.lane, 2 * h) - kMaxHistory - 1) * T::kStride",
        "gated_rela bfloat16/d=16/H=2/K=4 alone",
    ),
    Mutation(
        "the denominator's gradient by the queries is forgotten",
        "gated_rela/gradients.cuh",
        BF16_BACKWARD,
        "d.x[j][e] += dz[i / 2 % 2] * running",
        "d.x[j][e] += 0.f * running",
        "gated_rela bfloat16/d=16/H=2/K=0 alone",
    ),
    Mutation(
        "the denominator's gradient by the keys of a chunk is forgotten",
        "gated_rela/gradients.cuh",
        BF16_BACKWARD,
        " + factor * d_phi.x[j][e];",
        ";",
        "gated_rela/causal/bfloat16/d=16/H=2/K=0 alone",
    ),
    Mutation(
        "eps counts a row too few",
        "gated_rela/chunk.cuh",
        F32,
        "static_cast<float>(kTile - 1 - row)",
        "static_cast<float>(kTile - row)",
        "gated_rela/causal/float32/d=16 eps",
    ),
    Mutation(
        "segments see only the one before",
        "gated_rela/gated_rela.cu",
        RELA,
        "sum += part[k];",
        "sum = part[k];",
        "gated_rela/causal bfloat16/d=32 segments",
    ),
    Mutation(
        "positions begin anew behind a state",
        "gated_rela/chunk.cuh",
        BF16,
        "(team.segment.before + team.first_row(i)",
        "(team.first_row(i)",
        "gated_rela/causal/bfloat16/d=16 rotary parts",
    ),
    Mutation(
        "the gradient of a value handed on is forgotten",
        "gated_rela/conv_gradient.cuh",
        BF16_BACKWARD,
        "if (last < 0 || last",
        "if (last <= 0 || last",
        "gated_rela/causal/bfloat16/d=16 parts",
    ),
    Mutation(
        "the scaled gradients are read before they are written",
        "gated_rela/backward.cuh",
        BF16_BACKWARD,
        "transposed(team, state, m.g);\n      team.sync();",
        "transposed(team, state, m.g);",
        "gated_rela/causal/bfloat16/d=64",
    ),
    Mutation(
        "the dots are read before all warps have put theirs",
        "gated_rela/query_sums.cuh",
        BF16,
        "if constexpr (Team<E, kHead>::kWarps > 1) team.sync();",
        "",
        "gated_rela/causal/bfloat16/d=64",
    ),
    Mutation(
        "a launch takes the work of the one before",
        "gated_rela/team.cuh",
        BF16_BACKWARD,
        "work = p.first_work + number();",
        "work = number();",
        "gated_rela bfloat16 launches",
    ),
    Mutation(
        "a chunk finds the state behind it",
        "gated_rela/key_sums.cuh",
        BF16_BACKWARD,
        "    before(i);\n",
        "    before(i + 1);\n",
        "gated_rela/causal/bfloat16/d=16 L=33,2,18",
    ),
    Mutation(
        "two teams leave their chunks' states in one room",
        "gated_rela/team.cuh",
        BF16_BACKWARD,
        "room = number() * kTiles * kTile;",
        "room = 0;",
        "gated_rela/causal/bfloat16/d=16 L=33,2,18",
    ),
    Mutation(
        "the segments are read before they are found",
        "linear_scan/linear_scan.cu",
        SCAN,
        "found[run] = s;\n    }\n    __syncthreads();",
        "found[run] = s;\n    }",
        "linear_scan schedules",
    ),
    Mutation(
        "a scan's state fades no more behind the next segment",
        "linear_scan/linear_scan.cu",
        SCAN,
        "load_each(products + k * stride, i + k + 1 < count ? N : 0, product[k]);",
        "load_each(products + k * stride, 0, product[k]);",
        "linear_scan segments=16",
    ),
    Mutation(
        "the coefficients' conjugates are forgotten",
        "linear_scan/linear_scan.cu",
        SCAN,
        "kConjugate ? -a[i + 1] : a[i + 1]",
        "a[i + 1]",
        "linear_scan/complex",
    ),
    Mutation(
        "the first coefficient's gradient does not see the state before",
        "linear_scan/linear_scan.cu",
        SCAN,
        "if (row == row0) {",
        "if (row < 0) {",
        "linear_scan/float32 per_step/state",
    ),
    Mutation(
        "the runs' sums are read before all are written",
        "linear_scan/linear_scan.cu",
        SCAN,
        "= d_a[i];\n    __syncthreads();",
        "= d_a[i];",
        "linear_scan constant schedules",
    ),
    Mutation(
        "a selective scan's state fades no more behind the next segment",
        "selective_scan/selective_scan.cu",
        SELECTIVE,
        "state = fast_exp2(step[k] * a) * state + sum[k];",
        "state = state + sum[k];",
        "selective_scan segments=32",
    ),
    Mutation(
        "a tile is prepared while the one before is read",
        "selective_scan/backward.cuh",
        SELECTIVE_F32,
        "team.put(team.before(t + 1), state);\n        __syncthreads();",
        "team.put(team.before(t + 1), state);",
        "selective_scan/float32 schedules",
    ),
    Mutation(
        "the sums are read before all warps have put theirs",
        "selective_scan/backward.cuh",
        SELECTIVE_F32,
        "__syncthreads();\n        team.finish(",
        "team.finish(",
        "selective_scan/float32 schedules",
    ),
    Mutation(
        "a warp's channels but half are left out",
        "selective_scan/backward.cuh",
        SELECTIVE_F32,
        "values[i] = own + __shfl_xor_sync(0xffffffffu, sent, kOffset);",
        "values[i] = own + 0.f * __shfl_xor_sync(0xffffffffu, sent, kOffset);",
        "selective_scan/float32 N=16",
    ),
    Mutation(
        "a kept state is that before a later row",
        "selective_scan/forward.cuh",
        SELECTIVE_F32,
        "% p.kCheckpointRows == 0)",
        "% p.kCheckpointRows == 8)",
        "selective_scan/float32 L=70",
    ),
    Mutation(
        "the steps' gradients do not see A",
        "selective_scan/backward.cuh",
        SELECTIVE_F32,
        "sums[2 * kRows * this->channels] = d_step * kLn2;",
        "sums[2 * kRows * this->channels] = 0.f * step_grad;",
        "selective_scan/float32 L=33",
    ),
    Mutation(
        "the columns launched before are forgotten",
        "selective_scan/backward.cuh",
        SELECTIVE_F32,
        "p.first_column ? p.row_sums[i] : 0.f",
        "0.f",
        "selective_scan/float32 launches",
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name.replace(" ", "-"))
def test_mutation_is_found(build: Path, tmp_path: Path, mutation: Mutation) -> None:
    source = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", source)
    file = source / "kernels" / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.old!r} is to occur once in {mutation.file}"
    file.write_text(text.replace(mutation.old, mutation.new))

    # The mutated source alone is compiled, as cmake did but without sanitizers, and goes before the library.
    units = json.loads((build / "compile_commands.json").read_text())
    unit = next(u for u in units if u["file"].endswith(f"csrc/kernels/{mutation.unit}"))
    command = shlex.split(unit["command"].replace(str(ROOT / "csrc"), str(source)))
    mutant, test = tmp_path / "mutant.o", tmp_path / "ops_test"
    command[command.index("-o") + 1] = str(mutant)
    run(*command, "-g0", "-fno-sanitize=all", cwd=build)
    objects = sorted((build / "CMakeFiles/ops_test.dir").rglob("*.o"))
    libraries = [build / "librecgrela_simt.a", build / "librecgrela_cpu.a"]
    run(command[0], "-fsanitize=address,undefined", *objects, mutant, *libraries, "-o", test)
    result = subprocess.run([test, *mutation.cases.split()], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "FAILED" in result.stdout, result.stdout[-4000:] + result.stderr[-4000:]
