// Collectives of a warp, carried out for all lanes at once.
#include "tests/simt/collectives.h"

#include <cmath>
#include <cstring>

#include "tests/simt/context.h"
#include "tests/simt/host.h"

namespace recgrela::simt {
namespace {

// The same conversions as in device.h. The compiler could not inline those here, since they are compiled with
// sanitizers.
RECGRELA_NO_SANITIZE inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
template <Collective kKind>
RECGRELA_NO_SANITIZE inline float widen(uint32_t x) {
  if (kKind == Collective::kMmaBf16) return float_of(x << 16);
  const uint32_t rest = x & 0x7fffu;
  const float y = rest < 0x7c00u ? float_of(rest << 13) * 0x1p112f : float_of(0x7f800000u | rest << 13);
  return x & 0x8000u ? -y : y;
}

// Rounds towards zero, as tensor cores round their sums.
float truncate(double x) {
  const float rounded = static_cast<float>(x);
  return std::fabs(rounded) > std::fabs(x) ? std::nextafter(rounded, 0.0f) : rounded;
}

// Product with PTX's layouts, which assign a row and a column to each register half of a lane.
template <Collective kKind>
__attribute__((optimize("O3"))) RECGRELA_NO_SANITIZE void mma(void* const* operands) {
  constexpr int kDepth = kKind == Collective::kMmaTf32 ? 8 : 16;
  float a[16][kDepth], b[kDepth][8], d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaOperands& o = *static_cast<const MmaOperands*>(operands[lane]);
    const int group = lane / 4, member = lane % 4;
    for (int r = 0; r < 4; ++r) d[group + r / 2 * 8][member * 2 + r % 2] = o.d[r];
    if constexpr (kKind == Collective::kMmaTf32) {
      constexpr uint32_t kUpper19 = 0xffffe000u;
      for (int r = 0; r < 4; ++r) a[group + r % 2 * 8][member + r / 2 * 4] = float_of(o.a[r] & kUpper19);
      for (int r = 0; r < 2; ++r) b[member + r * 4][group] = float_of(o.b[r] & kUpper19);
    } else {
      for (int r = 0; r < 4; ++r) {
        float* to = &a[group + r % 2 * 8][member * 2 + r / 2 * 8];
        to[0] = widen<kKind>(o.a[r] & 0xffffu), to[1] = widen<kKind>(o.a[r] >> 16);
      }
      for (int r = 0; r < 2; ++r) {
        const int row = member * 2 + r * 8;
        b[row][group] = widen<kKind>(o.b[r] & 0xffffu), b[row + 1][group] = widen<kKind>(o.b[r] >> 16);
      }
    }
  }
  for (int i = 0; i < 16; ++i) {
    double sum[8];
    for (int j = 0; j < 8; ++j) sum[j] = d[i][j];
    for (int k = 0; k < kDepth; ++k)
      for (int j = 0; j < 8; ++j) sum[j] += double{a[i][k]} * b[k][j];
    for (int j = 0; j < 8; ++j) d[i][j] = truncate(sum[j]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaOperands& o = *static_cast<const MmaOperands*>(operands[lane]);
    for (int r = 0; r < 4; ++r) o.d[r] = d[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
  }
}

void load_matrices(void* const* operands, bool transposed) {
  for (int m = 0; m < 4; ++m) {
    auto at = [&](int row, int col) { return static_cast<const MatrixOperands*>(operands[m * 8 + row])->copy[col]; };
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4, col = lane % 4 * 2;
      const uint16_t low = transposed ? at(col, row) : at(row, col);
      const uint16_t high = transposed ? at(col + 1, row) : at(row, col + 1);
      static_cast<MatrixOperands*>(operands[lane])->r[m] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

void transpose_matrix(void* const* operands) {
  uint16_t matrix[8][8];
  for (int lane = 0; lane < kLanes; ++lane) std::memcpy(&matrix[lane / 4][lane % 4 * 2], operands[lane], 4);
  for (int lane = 0; lane < kLanes; ++lane)
    *static_cast<uint32_t*>(operands[lane]) =
        matrix[lane % 4 * 2][lane / 4] | static_cast<uint32_t>(matrix[lane % 4 * 2 + 1][lane / 4]) << 16;
}

RECGRELA_NO_SANITIZE void shuffle_lanes(void* const* operands, Collective kind, uint32_t lanes) {
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    auto& o = *static_cast<ShuffleOperands*>(operands[lane]);
    const unsigned first = lane & ~(o.width - 1), last = first + o.width - 1;
    unsigned from = lane;
    if (kind == Collective::kShuffle) from = first | (o.argument & (o.width - 1));
    if (kind == Collective::kShuffleXor && (lane ^ o.argument) <= last) from = lane ^ o.argument;
    if (kind == Collective::kShuffleUp && lane >= first + o.argument) from = lane - o.argument;
    if (kind == Collective::kShuffleDown && lane + o.argument <= last) from = lane + o.argument;
    // a lane that does not take part has an undefined value
    const bool known = from < kLanes && (lanes >> from & 1);
    o.result = known ? static_cast<const ShuffleOperands*>(operands[from])->value : ~uint64_t{0};
  }
}

}  // namespace

void carry_out(Collective kind, uint32_t lanes, void* const* operands) {
  switch (kind) {
    case Collective::kSyncWarp:
      return;
    case Collective::kShuffle:
    case Collective::kShuffleXor:
    case Collective::kShuffleUp:
    case Collective::kShuffleDown:
      return shuffle_lanes(operands, kind, lanes);
    case Collective::kBallot: {
      uint32_t votes = 0;
      for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        votes |= static_cast<uint32_t>(static_cast<VoteOperands*>(operands[lane])->predicate) << lane;
      }
      for (uint32_t rest = lanes; rest; rest &= rest - 1)
        static_cast<VoteOperands*>(operands[__builtin_ctz(rest)])->result = votes;
      return;
    }
    case Collective::kMmaBf16:
      return mma<Collective::kMmaBf16>(operands);
    case Collective::kMmaFp16:
      return mma<Collective::kMmaFp16>(operands);
    case Collective::kMmaTf32:
      return mma<Collective::kMmaTf32>(operands);
    case Collective::kTransposeMatrix:
      return transpose_matrix(operands);
    case Collective::kLoadMatrices:
    case Collective::kLoadMatricesTransposed:
      return load_matrices(operands, kind == Collective::kLoadMatricesTransposed);
  }
}

const char* name(Collective kind) {
  static const char* const names[] = {"__syncwarp",       "__shfl_sync",          "__shfl_xor_sync",
                                      "__shfl_up_sync",   "__shfl_down_sync",     "__ballot_sync",
                                      "mma16816<bf16>",   "mma16816<fp16>",       "mma1688_tf32",
                                      "transpose_matrix", "load_matrices<false>", "load_matrices<true>"};
  return names[static_cast<int>(kind)];
}

}  // namespace recgrela::simt
