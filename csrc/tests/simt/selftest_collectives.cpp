#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/common/activations.cuh"
#include "tests/simt/selftest.h"

namespace recgrela::simt {
namespace {

using namespace cuda;

void shuffles(Args p) {
  const int t = threadIdx.x, lane = t % 32;
  constexpr unsigned kAll = 0xffffffffu;
  float* out = p.out + t * 10;
  out[0] = __shfl_sync(kAll, static_cast<float>(t), 5);
  out[1] = __shfl_xor_sync(kAll, static_cast<float>(t), 9);
  out[2] = __shfl_down_sync(kAll, static_cast<float>(t), 4);
  out[3] = __shfl_up_sync(kAll, static_cast<float>(t), 3);
  out[4] = static_cast<float>(__shfl_sync(kAll, static_cast<int64_t>(t) << 33, lane + 1, 8) >> 33);
  out[5] = static_cast<float>(__popc(__ballot_sync(kAll, lane % 3 == 0)));
  out[6] = static_cast<float>(__any_sync(kAll, lane == 31)) + 2 * static_cast<float>(__all_sync(kAll, lane < 31));
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  out[7] = __shfl_xor_sync(half, static_cast<float>(t), 8);
  out[8] = out[9] = 0;
  if (lane < 4) {
    __syncwarp(0xfu);
    out[8] = __shfl_sync(0xfu, static_cast<float>(t), 3 - lane);
  } else {
    out[9] = __shfl_sync(0xfffffff0u, static_cast<float>(t), 35 - lane);
  }
}

bool shuffles_are_right() {
  for (Order order : kOrders) {
    set_order(order, 3);
    std::vector<float> out(64 * 10);
    launch(shuffles, 1, 64, 0, nullptr, Args{0, out.data(), nullptr});
    set_order(Order::kAscending);
    for (int t = 0; t < 64; ++t) {
      const int lane = t % 32, warp = t - lane;
      const int want[] = {warp + 5,
                          warp + (lane ^ 9),
                          lane + 4 < 32 ? t + 4 : t,
                          lane >= 3 ? t - 3 : t,
                          warp + lane / 8 * 8 + (lane + 1) % 8,
                          11,
                          1,
                          warp + (lane ^ 8),
                          lane < 4 ? warp + 3 - lane : 0,
                          lane < 4 ? 0 : warp + 35 - lane};
      for (int i = 0; i < 10; ++i)
        if (out[t * 10 + i] != static_cast<float>(want[i])) {
          std::printf("  thread %d, result %d: %g, not %d\n", t, i, out[t * 10 + i], want[i]);
          return false;
        }
    }
  }
  return true;
}

// D += A B with A [16, K] and B [K, 8] in the layouts of PTX's figures, which give the first row and column of a lane
// and the offset of each register.
template <typename E>
void product(Args p) {
  const int lane = threadIdx.x, quad = lane >> 2, in_quad = lane & 3;
  auto* a = static_cast<const float*>(p.in);
  const int k = p.n;
  const float* b = a + 16 * k;
  float d[4];
  uint32_t ra[4], rb[2];
  for (int i = 0; i < 4; ++i) d[i] = p.out[(i < 2 ? quad : quad + 8) * 8 + in_quad * 2 + (i & 1)];
  if constexpr (sizeof(E) == 2) {
    auto pair = [](float x, float y) { return pack2<E>(x, y); };
    const int c = in_quad * 2;
    ra[0] = pair(a[quad * k + c], a[quad * k + c + 1]);
    ra[1] = pair(a[(quad + 8) * k + c], a[(quad + 8) * k + c + 1]);
    ra[2] = pair(a[quad * k + c + 8], a[quad * k + c + 9]);
    ra[3] = pair(a[(quad + 8) * k + c + 8], a[(quad + 8) * k + c + 9]);
    rb[0] = pair(b[c * 8 + quad], b[(c + 1) * 8 + quad]);
    rb[1] = pair(b[(c + 8) * 8 + quad], b[(c + 9) * 8 + quad]);
    mma16816<E>(d, ra, rb, {d[0], d[1], d[2], d[3]});
  } else {
    ra[0] = float_bits(a[quad * k + in_quad]), ra[1] = float_bits(a[(quad + 8) * k + in_quad]);
    ra[2] = float_bits(a[quad * k + in_quad + 4]), ra[3] = float_bits(a[(quad + 8) * k + in_quad + 4]);
    rb[0] = float_bits(b[in_quad * 8 + quad]), rb[1] = float_bits(b[(in_quad + 4) * 8 + quad]);
    float halves[4] = {d[0], d[1], d[2], d[3]};
    mma1684_tf32(halves, ra[0], ra[1], rb[0]), mma1684_tf32(halves, ra[2], ra[3], rb[1]);
    mma1688_tf32(d, ra, rb, {d[0], d[1], d[2], d[3]});
    for (int i = 0; i < 4; ++i)
      if (halves[i] != d[i]) d[i] = NAN;
  }
  for (int i = 0; i < 4; ++i) p.out[(i < 2 ? quad : quad + 8) * 8 + in_quad * 2 + (i & 1)] = d[i];
}

// Operands are multiples of `step`, so that products and sums are exact.
template <typename E>
bool product_is_right(int k, float step) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> draw(-128, 127);
  std::vector<float> in(16 * k + k * 8), out(16 * 8), want(16 * 8);
  for (float& x : in) x = static_cast<float>(draw(random)) * step;
  for (float& x : out) x = static_cast<float>(draw(random)) * step;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      want[i * 8 + j] = out[i * 8 + j];
      for (int l = 0; l < k; ++l) want[i * 8 + j] += in[i * k + l] * in[16 * k + l * 8 + j];
    }
  if (sizeof(E) == 4)  // bits below the upper 19 must be ignored
    for (float& x : in) x = bits_float(float_bits(x) | (x == 0 ? 0 : 0x1fffu));
  launch(product<E>, 1, 32, 0, nullptr, Args{k, out.data(), in.data()});
  return out == want;
}

template <bool kTranspose, bool kSync = true>
void matrices(Args p) {
  auto* shared = reinterpret_cast<uint16_t*>(dynamic_shared());
  for (int i = threadIdx.x; i < 256; i += 32) shared[i] = static_cast<uint16_t>(i);
  if (kSync) __syncwarp();
  uint32_t r[4];
  load_matrices<kTranspose>(r, shared + threadIdx.x * 8 + p.n);
  for (int m = 0; m < 4; ++m) {
    p.out[threadIdx.x * 8 + m * 2] = static_cast<float>(r[m] & 0xffffu);
    p.out[threadIdx.x * 8 + m * 2 + 1] = static_cast<float>(r[m] >> 16);
  }
}

template <bool kTranspose, bool kSync = true>
bool matrices_are_right() {
  std::vector<float> out(32 * 8);
  launch(matrices<kTranspose, kSync>, 1, 32, 512, nullptr, Args{0, out.data(), nullptr});
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m)
      for (int h = 0; h < 2; ++h) {
        const int row = lane / 4, col = lane % 4 * 2 + h;
        const int want = m * 64 + (kTranspose ? col * 8 + row : row * 8 + col);
        if (out[lane * 8 + m * 2 + h] != static_cast<float>(want)) return false;
      }
  return true;
}

void transposed(Args p) {
  const uint32_t lane = threadIdx.x, at = lane / 4 * 8 + lane % 4 * 2;
  const uint32_t y = transpose_matrix(at | (at + 1) << 16);
  p.out[at] = static_cast<float>(y & 0xffffu), p.out[at + 1] = static_cast<float>(y >> 16);
}
bool transpose_is_right() {
  std::vector<float> out(64);
  launch(transposed, 1, 32, 0, nullptr, Args{0, out.data(), nullptr});
  for (int i = 0; i < 64; ++i)
    if (out[i] != static_cast<float>(i % 8 * 8 + i / 8)) return false;
  return true;
}

// Loads a tile as an operand and stores it elsewhere.
void copy_tile(Args p) {
  constexpr int kStride = 24;
  auto* shared = reinterpret_cast<bf16*>(dynamic_shared());
  for (int i = threadIdx.x; i < 16 * kStride; i += 32) shared[i].bits = static_cast<uint16_t>(i);
  __syncwarp();
  const int lane = threadIdx.x;
  uint32_t r[4];
  load_matrices<false>(r, shared + lane % 16 * kStride + lane / 16 * 8);
  bf16* const copy = shared + 16 * kStride;
  auto* const row = reinterpret_cast<unsigned char*>(copy + lane % 16 * kStride + lane / 16 * 8);
  store_matrix_rows<kStride * 2>(row, lane, r);
  __syncwarp();
  for (int i = lane; i < 256; i += 32) p.out[i] = static_cast<float>(copy[i / 16 * kStride + i % 16].bits);
}
bool stored_tile_is_right() {
  std::vector<float> out(256);
  launch(copy_tile, 1, 32, 2 * 16 * 24 * 2, nullptr, Args{0, out.data(), nullptr});
  for (int i = 0; i < 256; ++i)
    if (out[i] != static_cast<float>(i / 16 * 24 + i % 16)) return false;
  return true;
}

// The same for a tile of rows of 32 bytes whose halves are swapped where row / 4 is odd.
void copy_swizzled_tile(Args p) {
  auto* shared = reinterpret_cast<bf16*>(dynamic_shared());
  const int lane = static_cast<int>(thread_index());
  auto place = [](int row, int column) { return row * 16 + (column ^ (row >> 2 & 1) * 8); };
  for (int i = lane; i < 256; i += 32) shared[place(i / 16, i % 16)].bits = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t r[4];
  const int row = place(lane % 16, lane / 16 * 8);
  load_matrices<false>(r, shared + row);
  bf16* const copy = shared + 256;
  store_matrices_at(copy, row, place(lane / 4, lane % 4 * 2), r);
  __syncwarp();
  for (int i = lane; i < 256; i += 32) p.out[i] = static_cast<float>(copy[place(i / 16, i % 16)].bits);
}
bool stored_swizzled_tile_is_right() {
  std::vector<float> out(256);
  launch(copy_swizzled_tile, 1, 32, 2 * 256 * 2, nullptr, Args{0, out.data(), nullptr});
  for (int i = 0; i < 256; ++i)
    if (out[i] != static_cast<float>(i)) return false;
  return true;
}

// Stores registers m 64 + 8 row + column of four matrices, with the second and third one swapped.
void store_swapped(Args p) {
  const int lane = threadIdx.x;
  uint32_t r[4];
  for (uint32_t m = 0; m < 4; ++m) {
    const uint32_t first = m * 64 + lane / 4 * 8 + lane % 4 * 2;
    r[m] = first | (first + 1) << 16;
  }
  store_matrices_swapped(dynamic_shared(), lane, lane / 16 * 128 + lane / 8 % 2 * 256 + lane % 8 * 16, r);
  __syncwarp();
  for (int i = lane; i < 256; i += 32) p.out[i] = static_cast<float>(reinterpret_cast<uint16_t*>(dynamic_shared())[i]);
}
bool swapped_matrices_are_right() {
  std::vector<float> out(256);
  launch(store_swapped, 1, 32, 512, nullptr, Args{0, out.data(), nullptr});
  for (int i = 0; i < 256; ++i) {
    const int m = i / 64;
    if (out[i] != static_cast<float>((m % 2 * 2 + m / 2) * 64 + i % 64)) return false;
  }
  return true;
}

// Some lanes store matrices elsewhere, or not at all.
void store_apart(Args p) {
  const int lane = threadIdx.x;
  if (lane < 31) store_matrices(dynamic_shared(), lane, {});
  if (lane == 31 && p.n) store_matrices(dynamic_shared() + 512, lane, {});
  __syncwarp();
}

bool tanh_is_near() {
  double largest = 0;
  for (float x = -9; x < 9; x += 0x1p-8f) {
    const double exact = std::tanh(static_cast<double>(x));
    if (x != 0) largest = std::max(largest, std::fabs(static_cast<double>(fast_tanh(x)) / exact - 1));
  }
  return largest <= 0x1p-11 && largest > 0x1p-12;
}

bool softplus_is_exact() {
  double largest = 0;
  for (float x = -80; x < 80; x += 0x1p-8f) {
    const double exact = std::max(x, 0.f) + std::log1p(std::exp(-std::fabs(static_cast<double>(x))));
    largest = std::max(largest, std::fabs(softplus(x) / exact - 1));
  }
  return largest < 3e-7 && softplus(-INFINITY) == 0 && softplus(INFINITY) == INFINITY && std::isnan(softplus(NAN));
}

// Value of a 16-bit number by the definition of its format.
double value_of(uint32_t bits, int mantissa_bits, int bias) {
  const uint32_t exponent = (bits & 0x7fffu) >> mantissa_bits, mantissa = bits & ((1u << mantissa_bits) - 1);
  const double sign = bits & 0x8000u ? -1 : 1;
  if (exponent == 0x7fffu >> mantissa_bits) return mantissa ? NAN : sign * INFINITY;
  const double digits = exponent ? mantissa + std::ldexp(1.0, mantissa_bits) : mantissa;
  return sign * std::ldexp(digits, (exponent ? static_cast<int>(exponent) : 1) - bias - mantissa_bits);
}

// Rounds x, of up to 24 digits, to the last place of the format in double.
double rounded(double x, int mantissa_bits, int bias) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int last = std::max(std::ilogb(x), 1 - bias) - mantissa_bits;
  const double y = std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
  return std::fabs(y) >= std::ldexp(1.0, bias + 1) ? std::copysign(INFINITY, x) : y;
}

bool same(double x, double y) { return std::isnan(x) ? std::isnan(y) : x == y && std::signbit(x) == std::signbit(y); }

template <typename E>
bool conversions_are_right(int mantissa_bits, int bias) {
  auto wrong = [](const char* what, uint32_t bits) {
    std::printf("  %s %08x\n", what, bits);
    return false;
  };
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const E x{static_cast<uint16_t>(bits)};
    const float value = to_float(x);
    if (!same(value, value_of(bits, mantissa_bits, bias))) return wrong("to_float", bits);
    if (!std::isnan(value) && from_float<E>(value).bits != bits) return wrong("round trip", bits);
    if (!std::isfinite(value)) continue;
    for (int32_t nudge : {-1, 0, 1, 2, 0x1000, 0xfff, 0x1001, 0x3000, 0x8000, 0x7fff, 0x8001}) {
      const float y = bits_float(float_bits(value) + static_cast<uint32_t>(nudge));
      if (std::isfinite(y) && !same(to_float(from_float<E>(y)), rounded(y, mantissa_bits, bias)))
        return wrong("from_float", float_bits(y));
    }
  }
  std::mt19937 random(2);
  for (int i = 0; i < 1000000; ++i) {
    const float y = bits_float(static_cast<uint32_t>(random()));
    if (!same(to_float(from_float<E>(y)), rounded(y, mantissa_bits, bias))) return wrong("from_float", float_bits(y));
  }
  const uint32_t packed = pack2<E>(1.5f, -3.0f);
  const float2 half = unpack2<E>(halve2<E>(packed));
  return half.x == 0.75f && half.y == -1.5f && unpack2<E>(packed).x == 1.5f && unpack2<E>(packed).y == -3.0f &&
         (packed & 0xffffu) == from_float<E>(1.5f).bits;
}

void many_collectives(Args p) {
  float x = 1;
  for (int i = 0; i < p.n; ++i) x = __shfl_xor_sync(0xffffffffu, x, 1);
  p.out[threadIdx.x] = x;
}
void many_barriers(Args p) {
  for (int i = 0; i < p.n; ++i) __syncthreads();
  p.out[threadIdx.x] = 1;
}
void many_products(Args p) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  for (int i = 0; i < p.n; ++i) mma16816<fp16>(d, a, b);
  p.out[threadIdx.x] = d[0];
}

void time_switches(const char* what, void (*kernel)(Args)) {
  constexpr int kThreads = 128, kTimes = 5000;
  std::vector<float> out(kThreads);
  const auto begin = std::chrono::steady_clock::now();
  launch(kernel, 1, kThreads, 0, nullptr, Args{kTimes, out.data(), nullptr});
  const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
  std::printf("       %s: %.0f ns each\n", what, time.count() / (double{kTimes} * kThreads));
}

}  // namespace

void check_collectives() {
  check("shuffles and votes, of the warp and of some lanes", shuffles_are_right);
  check("mma of bfloat16", [] { return product_is_right<bf16>(16, 1 / 64.f); });
  check("mma of float16", [] { return product_is_right<fp16>(16, 1 / 64.f); });
  check("mma of tf32", [] { return product_is_right<float>(8, 1 / 64.f); });
  check("ldmatrix", matrices_are_right<false>);
  check("ldmatrix, transposed", matrices_are_right<true>);
  check("movmatrix", transpose_is_right);
  check("stmatrix", stored_tile_is_right);
  check("stmatrix of matrices in another order", swapped_matrices_are_right);
  check("stmatrix with swapped halves", stored_swizzled_tile_is_right);
  check("stmatrix by some lanes only", [] {
    return throws([] { launch(store_apart, 1, 32, 1024, nullptr, Args{0}); }, "not all lanes have stored") &&
           throws([] { launch(store_apart, 1, 32, 1024, nullptr, Args{1}); }, "not all lanes have stored");
  });
  check("tanh to 11 bits", tanh_is_near);
  check("softplus to float32's precision", softplus_is_exact);
  check("ldmatrix of rows that other lanes still write", [] {
    bool wrong = true;
    for (Order order : kOrders) {
      set_order(order, 1);
      wrong = wrong && !matrices_are_right<false, false>();
    }
    set_order(Order::kAscending);
    return wrong;
  });
  check("ldmatrix of a row that is not aligned", [] {
    std::vector<float> out(32 * 8);
    return throws([&] { launch(matrices<false>, 1, 32, 1024, nullptr, Args{4, out.data(), nullptr}); }, "not aligned");
  });
  check("float16 to and from float32", [] { return conversions_are_right<fp16>(10, 15); });
  check("bfloat16 to and from float32", [] { return conversions_are_right<bf16>(7, 127); });
  check("fast functions flush subnormal numbers", [] {
    return fast_exp2(3) == 8 && fast_exp2(-126) == 0x1p-126f && fast_exp2(-127) == 0 && fast_exp2(1e-40f) == 1 &&
           std::isinf(fast_exp2(128)) && fast_reciprocal(4) == 0.25f && fast_reciprocal(0x1p127f) == 0 &&
           fast_reciprocal(-1e-40f) == -INFINITY;
  });
  time_switches("switch at a shuffle", many_collectives);
  time_switches("switch at a barrier", many_barriers);
  time_switches("switch at an mma", many_products);
}

}  // namespace recgrela::simt
