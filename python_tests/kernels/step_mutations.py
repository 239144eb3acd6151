"""Faults of the kernels that advance states by one row, which the tests in csrc/tests must find."""

from __future__ import annotations

from python_tests.kernels.mutation import Mutation, dropped

RELA = "gated_rela_step/gated_rela_step.cu"
CONV = "causal_conv1d_step/causal_conv1d_step.cu"
SELECTIVE = "selective_scan_step/selective_scan_step.cu"
MUTATIONS = [
    dropped(
        "states are updated before all features are stored",
        RELA,
        RELA,
        "compute_features<E>(p, b, position, kv, f);\n  __syncthreads();",
        "__syncthreads();",
        "steps/gated_rela_step/float32/d=16/K=4/schedules",
    ),
    Mutation(
        "a row is rotated by the next position",
        RELA,
        RELA,
        "static_cast<uint64_t>(position) * static_cast<uint64_t>(p.turns[c / 2])",
        "static_cast<uint64_t>(position)",
        "static_cast<uint64_t>(position + 1)",
        "steps/gated_rela_step/float32",
    ),
    Mutation(
        "angles have 16 bits",
        RELA,
        RELA,
        "static_cast<int32_t>(turn >> 32)",
        "turn >> 32",
        "turn >> 48 << 16",
        "steps/gated_rela_step/float32/far",
    ),
    Mutation(
        "the key is added to the denominator of the next row only",
        RELA,
        RELA,
        "f.products[c] = q0 * z0, f.products",
        "q0 * z0",
        "q0 * (z0 - k0)",
        "steps/gated_rela_step/float32",
    ),
    Mutation(
        "rows after the first batch are not updated",
        RELA,
        RELA,
        "j0 += kBatch * kRowLanes",
        "kBatch * kRowLanes",
        "d",
        "steps/gated_rela_step/float32/d=128",
    ),
    Mutation(
        "sums of a head lack a part of the lanes",
        RELA,
        RELA,
        "for (int lanes = kColumnLanes; lanes < kWarp; lanes *= 2) {",
        "kWarp",
        "kWarp / 2",
        "steps/gated_rela_step/float32",
    ),
    Mutation(
        "the oldest row of a history stays",
        "common/conv_step.cuh",
        CONV,
        "from_float<E>(k + 1 < rows ? h[k + 1 < kUnrolled ? k + 1 : k] : x)",
        "k + 1 < kUnrolled ? k + 1 : k",
        "k == 0 ? 0 : k + 1 < kUnrolled ? k + 1 : k",
        "steps/causal_conv1d_step/float32",
    ),
    Mutation(
        "the last sum of the lanes of a channel is left out",
        SELECTIVE,
        SELECTIVE,
        "for (int lanes = 1; lanes < p.lanes; lanes *= 2) y +=",
        "lanes < p.lanes",
        "2 * lanes < p.lanes",
        "steps/selective_scan_step/float32",
    ),
]
