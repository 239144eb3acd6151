"""Faults of the kernels of mlp and mlp_block, which the tests in csrc/tests must find."""

from __future__ import annotations

from python_tests.kernels.mutation import Mutation, dropped

BLOCK_BF16 = "mlp/block_bfloat16.cu"
MUTATIONS = [
    dropped(
        "weights are staged while other warps read the previous ones",
        "mlp/forward.cuh",
        "mlp/float32.cu",
        "        __syncthreads();\n        weights.stage(",
        "__syncthreads();",
        "mlp/float32 128-160-64 schedules",
    ),
    dropped(
        "gradients of hidden rows are read before all warps have stored theirs",
        "mlp/d_weights.cuh",
        "mlp/bfloat16.cu",
        "    __syncthreads();\n    if constexpr (kFused) {",
        "__syncthreads();",
        "mlp/bfloat16 64-128-64 schedules",
    ),
    Mutation(
        "the backward drops the elements beside those that the forward drops",
        "mlp/d_weights.cuh",
        "mlp/bfloat16.cu",
        "drop_tile<true>(drop1, index, p.hidden_stride",
        "index",
        "index + 1",
        "mlp/bfloat16/gelu dropout",
    ),
    dropped(
        "rows are finished before all warps have stored their gradients",
        "mlp/d_weights.cuh",
        BLOCK_BF16,
        "        __syncthreads();\n        block.finish(p, begin);",
        "__syncthreads();",
        "mlp_block/bfloat16 schedules F=256",
    ),
    dropped(
        "rows are staged while others are finished in the same memory",
        "mlp/d_weights.cuh",
        BLOCK_BF16,
        "block.finish(p, begin);\n        __syncthreads();",
        "__syncthreads();",
        "mlp_block/bfloat16 schedules F=256",
    ),
    Mutation(
        "the last row counts once for each row after it",
        "mlp/block_rows.cuh",
        BLOCK_BF16,
        "active, d_y);\n      float mean;",
        "active",
        "true",
        "mlp_block/bfloat16 T=65",
    ),
    Mutation(
        "the norm's bias is no part of the hidden layer's",
        "mlp/weights.cuh",
        BLOCK_BF16,
        "sum += w[j] * bias[j]",
        "w[j] * bias[j]",
        "0.f",
        "mlp_block/bfloat16 T=16",
    ),
    Mutation(
        "the gradients of the norm lack those of the last group of hidden columns",
        "mlp/block.cu",
        "mlp/block.cu",
        "const int64_t norms = int64_t{p.row_blocks} * p.column_groups;",
        "p.column_groups",
        "1",
        "mlp_block/bfloat16 F=300",
    ),
    Mutation(
        "two elements that share a hash have one draw",
        "common/dropout.cuh",
        "mlp/bfloat16.cu",
        "second = h >= threshold_;",
        "h >= threshold_",
        "first",
        "mlp/bfloat16/gelu dropout",
    ),
    dropped(
        "a sum of float32 products lacks the small ones",
        "common/split.cuh",
        "mlp/float32.cu",
        "if constexpr (kParts<E> > 1) add_scaled(large, small, 1.f);",
        "add_scaled(large, small, 1.f);",
        "mlp/float32/gelu 32-48-64",
    ),
    Mutation(
        "float32 operands have one part",
        "common/split.cuh",
        "mlp/float32.cu",
        "x -= rounded.x, y -= rounded.y;",
        "x -= rounded.x, y -= rounded.y;",
        "x = y = 0.f;",
        "mlp/float32/gelu 32-48-64",
    ),
]
