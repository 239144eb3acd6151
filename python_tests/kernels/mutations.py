"""Faults of the CUDA kernels that the tests in csrc/tests must find."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A change of one place in a source.

    Args:
        name: the fault
        file: the source, below csrc/kernels
        unit: the source to compile that includes the file, or is it
        context: text that occurs once in the file
        old: the part of the context to replace, which occurs once in it; an expression, or statements
        new: the replacement
        cases: texts in the names of the cases to run
    """

    name: str
    file: str
    unit: str
    context: str
    old: str
    new: str
    cases: str

    def apply(self, text: str, number: int) -> str:
        """Returns the text with both parts: the new one runs if simt::mutation is `number`."""
        assert text.count(self.context) == 1, f"{self.context!r} must occur once in {self.file}"
        assert self.context.count(self.old) == 1, f"{self.old!r} must occur once in {self.context!r}"
        condition = f"::recgrela::simt::mutation == {number}"
        if self.old.endswith(";"):
            both = f"if ({condition}) {{ {self.new} }} else {{ {self.old} }}"
        else:
            both = f"({condition} ? ({self.new}) : ({self.old}))"
        return text.replace(self.context, self.context.replace(self.old, both))


def dropped(name: str, file: str, unit: str, context: str, old: str, cases: str) -> Mutation:
    """A barrier that is missing."""
    return Mutation(name, file, unit, context, old, "", cases)


CONV, SCAN, SCAN_F32 = "causal_conv1d/float32.cu", "linear_scan/linear_scan.cu", "linear_scan/float32.cu"
CONV_HOST = "causal_conv1d/causal_conv1d.cu"
RELA, F32 = "gated_rela/gated_rela.cu", "gated_rela/forward_float32.cu"
BF16, BF16_BACKWARD = "gated_rela/forward_bfloat16.cu", "gated_rela/backward_bfloat16.cu"
LAST_BF16 = "gated_rela_last/bfloat16.cu"
ENTROPY, ENTROPY_BF16 = "linear_cross_entropy/linear_cross_entropy.cu", "linear_cross_entropy/bfloat16.cu"
LINEAR, LINEAR_F32, LINEAR_BF16 = "linear/linear.cu", "linear/float32.cu", "linear/bfloat16.cu"
ADD_NORM = "add_norm/float32.cu"
SELECTIVE, SELECTIVE_F32 = "selective_scan/selective_scan.cu", "selective_scan/float32.cu"
MUTATIONS = [
    dropped(
        "boundaries are read before all are written",
        "causal_conv1d/run.cuh",
        CONV,
        "static_cast<int32_t>(i - 1);\n  }\n  __syncthreads();",
        "__syncthreads();",
        "causal_conv1d/float32 schedules",
    ),
    dropped(
        "partial sums are read before all are written",
        "common/reduce.cuh",
        CONV_HOST,
        "sums[threadIdx.x] = sum;\n  __syncthreads();",
        "__syncthreads();",
        "causal_conv1d schedules",
    ),
    Mutation(
        "the first row of d_x is left out",
        "causal_conv1d/backward.cuh",
        CONV,
        "if (row >= K - 1) store_row",
        "row >= K - 1",
        "row > K - 1",
        "causal_conv1d/float32",
    ),
    Mutation(
        "a gradient crosses into the previous sequence",
        "causal_conv1d/backward.cuh",
        CONV,
        "depth = 0;\n          }",
        "depth = 0;",
        "depth = 1;",
        "causal_conv1d/float32 L=3,0,40",
    ),
    Mutation(
        "the last wait for copies is a group short",
        "gated_rela/pipeline.cuh",
        BF16,
        "copies_wait<1>();",
        "copies_wait<1>();",
        "copies_wait<2>();",
        "gated_rela bfloat16/d=16 L=33,2,18",
    ),
    dropped(
        "a stage is filled while it is read",
        "gated_rela/pipeline.cuh",
        F32,
        "i % 2 : 0);\n    team.sync();",
        "team.sync();",
        "gated_rela float32/d=64 schedules",
    ),
    dropped(
        "denominators are read before all warps have written theirs",
        "gated_rela/forward.cuh",
        BF16,
        "team.sync();\n    denominator =",
        "team.sync();",
        "gated_rela/causal/bfloat16/d=64",
    ),
    dropped(
        "features are read before they are written",
        "gated_rela/key_sums.cuh",
        BF16,
        "team.sync();\n    add_keys(",
        "team.sync();",
        "gated_rela/bidirectional/bfloat16/d=64",
    ),
    Mutation(
        "a chunk's current row does not attend to itself",
        "common/tile.cuh",
        BF16,
        "if (col + e > row)",
        "col + e > row",
        "col + e >= row",
        "gated_rela/causal/bfloat16/d=16",
    ),
    Mutation(
        "the convolution is a row late",
        "gated_rela/forward.cuh",
        BF16,
        "(tile_row(team.lane, 2 * h) - kMaxHistory) * T::kStride",
        "tile_row(team.lane, 2 * h) - kMaxHistory",
        "tile_row(team.lane, 2 * h) - kMaxHistory - 1",
        "gated_rela bfloat16/d=16/H=2/K=4 alone",
    ),
    Mutation(
        "queries miss the gradient of the denominator",
        "gated_rela/gradients.cuh",
        BF16_BACKWARD,
        "d.x[j][e] += d_z[i / 2 % 2] * running",
        "d_z[i / 2 % 2]",
        "0.f",
        "gated_rela bfloat16/d=16/H=2/K=0 alone",
    ),
    Mutation(
        "keys miss the gradient of the denominator within a chunk",
        "gated_rela/gradients.cuh",
        BF16_BACKWARD,
        " + factor * d_phi.x[j][e];",
        "factor * d_phi.x[j][e]",
        "0.f",
        "gated_rela/causal/bfloat16/d=16/H=2/K=0 alone",
    ),
    Mutation(
        "eps counts a key too few",
        "gated_rela/chunk.cuh",
        F32,
        "static_cast<float>(kTile - 1 - row)",
        "kTile - 1 - row",
        "kTile - row",
        "gated_rela/causal/float32/d=16 eps",
    ),
    Mutation(
        "segments receive the state of the previous one alone",
        "gated_rela/gated_rela.cu",
        RELA,
        "sum += segment_sum;",
        "sum += segment_sum;",
        "sum = segment_sum;",
        "gated_rela/causal bfloat16/d=32 segments",
    ),
    Mutation(
        "positions restart after a state",
        "gated_rela/chunk.cuh",
        BF16,
        "(team.segment.position + int64_t{i} * kTile",
        "team.segment.position",
        "team.segment.begin - team.segment.sequence_begin",
        "gated_rela/causal/bfloat16/d=16 rotary chunks",
    ),
    Mutation(
        "the gradient of a value in the final history is lost",
        "gated_rela/conv_gradient.cuh",
        BF16_BACKWARD,
        "if (last < 0 || last",
        "last < 0",
        "last <= 0",
        "gated_rela/causal/bfloat16/d=16 chunks",
    ),
    dropped(
        "scaled gradients are read before they are written",
        "gated_rela/backward.cuh",
        BF16_BACKWARD,
        "transposed(team, state, m.g);\n      team.sync();",
        "team.sync();",
        "gated_rela/causal/bfloat16/d=64",
    ),
    dropped(
        "row sums are read before all warps have written theirs",
        "gated_rela/query_sums.cuh",
        BF16,
        "if constexpr (Team<E, kHead>::kWarps > 1) team.sync();",
        "if constexpr (Team<E, kHead>::kWarps > 1) team.sync();",
        "gated_rela/causal/bfloat16/d=64",
    ),
    Mutation(
        "a launch repeats the units of the previous one",
        "gated_rela/team.cuh",
        BF16_BACKWARD,
        "unit = p.first_unit + number();",
        "p.first_unit + number()",
        "number()",
        "gated_rela bfloat16 launches",
    ),
    Mutation(
        "a chunk receives the state after it",
        "gated_rela/key_sums.cuh",
        BF16_BACKWARD,
        "    before(i);\n",
        "before(i);",
        "before(i + 1);",
        "gated_rela/causal/bfloat16/d=16 L=33,2,18",
    ),
    Mutation(
        "two teams store their chunks' states in one workspace",
        "gated_rela/team.cuh",
        BF16_BACKWARD,
        "offset = number() * kTiles * kTile;",
        "number() * kTiles * kTile",
        "0",
        "gated_rela/causal/bfloat16/d=16 L=33,2,18",
    ),
    dropped(
        "row slots are added before all are written",
        "gated_rela_last/thread.cuh",
        LAST_BF16,
        "int size) const {\n    __syncthreads();",
        "__syncthreads();",
        "gated_rela_last/bfloat16 schedules",
    ),
    dropped(
        "gradients of the wanted row are read before they are written",
        "gated_rela_last/backward.cuh",
        LAST_BF16,
        "__syncthreads();\n  float d_query[N] = {};",
        "__syncthreads();",
        "gated_rela_last/bfloat16 schedules",
    ),
    Mutation(
        "rows after the segment count as keys",
        "gated_rela_last/forward.cuh",
        LAST_BF16,
        "if (left > 0) {",
        "left > 0",
        "true",
        "gated_rela_last/bfloat16/d=16",
    ),
    Mutation(
        "the convolution reads the previous sequence",
        "gated_rela_last/thread.cuh",
        LAST_BF16,
        "valid && source >= rows.begin",
        "source >= rows.begin",
        "source >= 0",
        "gated_rela_last/bfloat16 L=33,2,18",
    ),
    Mutation(
        "an empty sequence divides by zero",
        "gated_rela_last/thread.cuh",
        LAST_BF16,
        "valid ? fast_reciprocal(denominator) : 0.f",
        "valid ? fast_reciprocal(denominator) : 0.f",
        "fast_reciprocal(denominator)",
        "gated_rela_last/bfloat16/empty",
    ),
    dropped(
        "segments are read before they are found",
        "linear_scan/thread.cuh",
        SCAN_F32,
        "found[run] = s;\n    }\n    __syncthreads();",
        "__syncthreads();",
        "linear_scan/float32 schedules",
    ),
    Mutation(
        "the state of linear_scan does not decay over a segment",
        "linear_scan/linear_scan.cu",
        SCAN,
        "load_each(products + k * stride, valid, sum.product);",
        "valid",
        "0",
        "linear_scan segments=16",
    ),
    Mutation(
        "conjugates of the coefficients are forgotten",
        "linear_scan/plan.cuh",
        SCAN_F32,
        "kConjugate ? -a[i + 1] : a[i + 1]",
        "kConjugate ? -a[i + 1] : a[i + 1]",
        "a[i + 1]",
        "linear_scan/complex",
    ),
    Mutation(
        "the gradient of the first coefficient ignores the initial state",
        "linear_scan/backward.cuh",
        SCAN_F32,
        "if (row == row0) {",
        "row == row0",
        "row < 0",
        "linear_scan/float32 per_step/state",
    ),
    dropped(
        "the sums of segments are read before all are written",
        "linear_scan/backward.cuh",
        SCAN_F32,
        "= d_a[i];\n  __syncthreads();",
        "__syncthreads();",
        "linear_scan/float32 constant schedules",
    ),
    Mutation(
        "the state of selective_scan does not decay over a segment",
        "selective_scan/selective_scan.cu",
        SELECTIVE,
        "state = fast_exp2(sum.steps * a) * state + sum.state;",
        "fast_exp2(sum.steps * a)",
        "1.f",
        "selective_scan segments=32",
    ),
    dropped(
        "a tile is prepared while the previous one is read",
        "selective_scan/backward.cuh",
        SELECTIVE_F32,
        "team.put(team.states_before(t + 1), state);\n        __syncthreads();",
        "__syncthreads();",
        "selective_scan/float32 schedules",
    ),
    dropped(
        "the sums over states are read before all warps have written theirs",
        "selective_scan/backward.cuh",
        SELECTIVE_F32,
        "__syncthreads();\n        team.store_gradients(",
        "__syncthreads();",
        "selective_scan/float32 schedules",
    ),
    Mutation(
        "half of a warp's channels are left out",
        "selective_scan/backward_team.cuh",
        SELECTIVE_F32,
        "values[i] = own + __shfl_xor_sync(0xffffffffu, sent, kOffset);",
        "own + __shfl_xor_sync(0xffffffffu, sent, kOffset)",
        "own + 0.f * __shfl_xor_sync(0xffffffffu, sent, kOffset)",
        "selective_scan/float32 N=16",
    ),
    Mutation(
        "a checkpoint holds the state before a later row",
        "selective_scan/forward.cuh",
        SELECTIVE_F32,
        "(row0 - segment.begin) % p.kCheckpointRows == 0",
        "(row0 - segment.begin) % p.kCheckpointRows == 0",
        "(row0 - segment.begin) % p.kCheckpointRows == 8",
        "selective_scan/float32 L=70",
    ),
    Mutation(
        "the gradient of the steps ignores A",
        "selective_scan/backward_team.cuh",
        SELECTIVE_F32,
        "sums[2 * kRows * this->channels] = d_step * kLn2;",
        "d_step * kLn2",
        "0.f * d_step",
        "selective_scan/float32 L=33",
    ),
    Mutation(
        "the sums of earlier launches are forgotten",
        "selective_scan/backward.cuh",
        SELECTIVE_F32,
        "p.first_column ? p.row_sums[i] : 0.f",
        "p.first_column ? p.row_sums[i] : 0.f",
        "0.f",
        "selective_scan/float32 launches",
    ),
    dropped(
        "a digit's count is read after another lane has added to it",
        "embedding/sort.cu",
        "embedding/sort.cu",
        "const int count = counts_[digit];\n      __syncwarp();",
        "__syncwarp();",
        "embedding/T=700",
    ),
    dropped(
        "sums of runs are read before all teams have written theirs",
        "embedding/backward.cu",
        "embedding/backward.cu",
        "next = after_next;\n  }\n  __syncthreads();",
        "__syncthreads();",
        "embedding schedules",
    ),
    Mutation(
        "a run that began in the piece before is stored as if it began here",
        "embedding/backward.cu",
        "embedding/backward.cu",
        "if (from_before)",
        "from_before",
        "false",
        "embedding popular piece=",
    ),
    Mutation(
        "a run that crosses several blocks is added again from its second block",
        "embedding/backward.cu",
        "embedding/backward.cu",
        "if (block > 0 && p.sorted[begin - 1].x == item) return;",
        "block > 0",
        "false",
        "embedding equal piece=",
    ),
    dropped(
        "a stage is read before all threads have copied it",
        "linear_cross_entropy/stream.cuh",
        ENTROPY_BF16,
        "copies_wait<0>();\n      __syncthreads();\n      pass.synchronized",
        "__syncthreads();",
        "linear_cross_entropy/bfloat16 schedules",
    ),
    dropped(
        "normalizers are replaced while they are read",
        "linear_cross_entropy/gradients.cuh",
        ENTROPY_BF16,
        "__syncthreads();  // the last values have been read",
        "__syncthreads();",
        "linear_cross_entropy/bfloat16 refill",
    ),
    Mutation(
        "items after the last one take part",
        "linear_cross_entropy/softmax.cuh",
        ENTROPY_BF16,
        "item >= p_.num_items ? -INFINITY",
        "-INFINITY",
        "0.f",
        "linear_cross_entropy/bfloat16 N=7",
    ),
    Mutation(
        "weighted sums keep the scale of an earlier maximum",
        "linear_cross_entropy/softmax.cuh",
        ENTROPY_BF16,
        "scale_rows(out[r][k], factor);",
        "scale_rows(out[r][k], factor);",
        "",
        "linear_cross_entropy/bfloat16 scale=300",
    ),
    Mutation(
        "the last split of the rows is left out",
        "linear_cross_entropy/linear_cross_entropy.cu",
        ENTROPY,
        "s < splits; ++s) sum",
        "s < splits",
        "s < splits - 1",
        "linear_cross_entropy/bfloat16 T=257",
    ),
    dropped(
        "products begin before all weights are staged",
        "linear/forward.cuh",
        LINEAR_F32,
        "(p, first, count, weights, biases);\n  __syncthreads();",
        "__syncthreads();",
        "linear/float32 schedules",
    ),
    dropped(
        "a chunk of d_y is replaced while other warps read it",
        "linear/backward.cuh",
        LINEAR_BF16,
        "copies_wait<Shared::kStages - 2>();\n      __syncthreads();",
        "__syncthreads();",
        "linear/bfloat16 schedules",
    ),
    Mutation(
        "the wait for a chunk of d_y is a group short",
        "linear/backward.cuh",
        LINEAR_BF16,
        "copies_wait<Shared::kStages - 2>();",
        "copies_wait<Shared::kStages - 2>();",
        "copies_wait<Shared::kStages - 1>();",
        "linear/bfloat16 schedules",
    ),
    Mutation(
        "rows after the last are read",
        "linear/backward.cuh",
        LINEAR_BF16,
        "i < left);",
        "i < left",
        "left > 0",
        "linear/bfloat16/T=700",
    ),
    Mutation(
        "columns after a layer's last are written",
        "common/stage.cuh",
        LINEAR_BF16,
        "first + row < rows && column + lane / 4 * kVector < width",
        "column + lane / 4 * kVector < width",
        "width > 0",
        "linear/bfloat16/T=65",
    ),
    Mutation(
        "the second layer's first gradient is stored as the first layer's",
        "linear/linear.cu",
        LINEAR,
        "const bool second = column >= first;",
        "column >= first",
        "column > first",
        "linear/bfloat16/T=1100",
    ),
    dropped(
        "sums of warps are read before all are written",
        "common/norm.cuh",
        ADD_NORM,
        "__syncthreads();\n    for (int i = threadIdx.x; i < 2 * width",
        "__syncthreads();",
        "add_norm/float32 schedules",
    ),
    Mutation(
        "the last row counts once for each lane without a row",
        "add_norm/backward.cuh",
        ADD_NORM,
        "row), active && p.d_normed.data, d)",
        "active && p.d_normed.data",
        "p.d_normed.data != nullptr",
        "add_norm/float32/T=7",
    ),
    Mutation(
        "columns past the end of a row count in its variance",
        "common/norm.cuh",
        ADD_NORM,
        "x = valid(i / 4) ? x - mean : 0.f;",
        "valid(i / 4) ? x - mean : 0.f",
        "x - mean",
        "add_norm/float32 D=48",
    ),
    Mutation(
        "each row is a sequence for DropPath",
        "add_norm/plan.cuh",
        ADD_NORM,
        "sequence_ ? static_cast<uint32_t>(__ldg(sequence_ + row)) : row",
        "sequence_ ? static_cast<uint32_t>(__ldg(sequence_ + row)) : row",
        "row",
        "add_norm/float32 path/sequences",
    ),
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
        "drop_tile(drop1, index, 1, p.hidden",
        "index",
        "index + 1",
        "mlp/bfloat16/gelu dropout",
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
