#include "tests/simt/selftest.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <vector>

namespace recgrela::simt {
namespace {

using namespace cuda;

int failures = 0;

template <bool kBarrier>
void reverse(Args p) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared());
  const int n = blockDim.x, t = threadIdx.x;
  shared[t] = static_cast<float>(blockIdx.x * n + t);
  if (kBarrier) __syncthreads();
  p.out[blockIdx.x * n + t] = shared[n - 1 - t];
}

template <bool kBarrier>
bool reverse_is_right(Order order, int threads, uint64_t seed = 0) {
  constexpr int kBlocks = 3;
  set_order(order, seed);
  std::vector<float> out(kBlocks * threads, -1);
  launch(reverse<kBarrier>, kBlocks, threads, threads * sizeof(float), nullptr, Args{0, out.data(), nullptr});
  set_order(Order::kAscending);
  for (int b = 0; b < kBlocks; ++b)
    for (int t = 0; t < threads; ++t)
      if (out[b * threads + t] != static_cast<float>(b * threads + threads - 1 - t)) return false;
  return true;
}

// Each thread reads the next thread's number, then overwrites its own. Without a barrier in between, a thread that runs
// late reads the new number.
template <bool kBarrier>
void shift(Args p) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared());
  const int n = blockDim.x, t = threadIdx.x;
  shared[t] = static_cast<float>(t);
  __syncthreads();
  const float x = shared[(t + 1) % n];
  if (kBarrier) __syncthreads();
  shared[t] = -1;
  p.out[t] = x;
}

template <bool kBarrier>
bool shift_is_right(Order order) {
  set_order(order, 5);
  std::vector<float> out(96);
  launch(shift<kBarrier>, 1, 96, 96 * sizeof(float), nullptr, Args{0, out.data(), nullptr});
  set_order(Order::kAscending);
  for (int t = 0; t < 96; ++t)
    if (out[t] != static_cast<float>((t + 1) % 96)) return false;
  return true;
}

void barrier_of_some(Args p) {
  if (static_cast<int>(threadIdx.x) < p.n) return;
  __syncthreads();
}
// Three lanes each wait for the next one.
void wait_in_a_circle(Args) {
  const unsigned t = threadIdx.x - 32;
  if (t < 3) {
    __syncwarp(1u << t | 1u << (t + 1) % 3);
  } else {
    __syncthreads();
  }
}
void shuffle_or_sync(Args) {
  if (threadIdx.x % 2) {
    __syncwarp();
  } else {
    __shfl_xor_sync(0xffffffffu, 1, 1);
  }
}
void sync_or_barrier(Args) {
  if (threadIdx.x == 7) __syncthreads();
  __syncwarp();
  __syncthreads();
}
void refuse_thread(Args p) { RECGRELA_DEVICE_CHECK(static_cast<int>(threadIdx.x) != p.n, "the offsets decrease"); }

#ifdef __SANITIZE_ADDRESS__
void write_past_shared(Args p) { dynamic_shared()[threadIdx.x + p.n] = 1; }

bool dies(const std::function<void()>& f) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) _exit(0);
    f();
    _exit(0);
  }
  int status = 0;
  return waitpid(child, &status, 0) == child && !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

void poison(Args p) { p.out[threadIdx.x] = reinterpret_cast<float*>(dynamic_shared())[threadIdx.x]; }

// Two groups of copies. kWaits: waits for both, else for the older one only.
template <bool kWaits>
void copy(Args p) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared()) + threadIdx.x * 8;
  auto* in = static_cast<const float*>(p.in) + threadIdx.x * 8;
  copy_async16(shared, in, true);
  copies_commit();
  copy_async16(shared + 4, p.n ? in + 4 : nullptr, p.n);
  copies_commit();
  copies_wait<kWaits ? 0 : 1>();
  for (int i = 0; i < 8; ++i) p.out[threadIdx.x * 8 + i] = shared[i];
  copies_wait<0>();
}
void copy_and_leave(Args p) {
  copy_async16(dynamic_shared(), p.in, true);
  copies_commit();
}
void copy_unaligned(Args p) { copy_async16(dynamic_shared(), static_cast<const char*>(p.in) + 4, true); }

}  // namespace

void check(const char* name, const std::function<bool()>& holds) {
  bool ok = false;
  std::string note;
  try {
    ok = holds();
  } catch (const std::exception& e) {
    note = std::string(": ") + e.what();
  }
  std::printf("%s %s%s\n", ok ? "ok    " : "FAILED", name, note.c_str());
  std::fflush(stdout);
  failures += !ok;
}

bool throws(const std::function<void()>& f, const char* text) {
  try {
    f();
  } catch (const Error& e) {
    if (std::strstr(e.what(), text)) return true;
    std::printf("  another error: %s\n", e.what());
  }
  return false;
}

void check_scheduling() {
  check("a block reverses through shared memory, in every order", [] {
    bool ok = true;
    for (Order order : kOrders)
      for (int threads : {1, 31, 32, 33, 100, 256, 1024}) ok = ok && reverse_is_right<true>(order, threads, threads);
    return ok;
  });
  check("a missing barrier before a read shows in every order", [] {
    bool wrong = true;
    for (Order order : kOrders) wrong = wrong && !reverse_is_right<false>(order, 64);
    return wrong;
  });
  check("a write after a read is ordered by a barrier", [] {
    bool ok = true;
    for (Order order : kOrders) ok = ok && shift_is_right<true>(order);
    return ok;
  });
  check("a missing barrier before a write shows in every order", [] {
    bool wrong = true;
    for (Order order : kOrders) wrong = wrong && !shift_is_right<false>(order);
    return wrong;
  });
  check("some threads miss a barrier", [] {
    bool ok = true;
    for (Order order : kOrders) {
      set_order(order, 1);
      ok = ok && throws([] { launch(barrier_of_some, 2, 96, 0, nullptr, Args{40, nullptr, nullptr}); },
                        "barrier not reached by all threads");
    }
    set_order(Order::kAscending);
    return ok;
  });
  check("a deadlock names the threads that wait", [] {
    return throws([] { launch(wait_in_a_circle, 1, 64, 0, nullptr, Args{}); },
                  "deadlock; at __syncthreads: 0-31, 35-63; at collectives: 32-34 at __syncwarp");
  });
  check("a collective that lanes reach at different instructions", [] {
    return throws([] { launch(shuffle_or_sync, 1, 32, 0, nullptr, Args{}); }, "divergent warp collective") &&
           throws([] { launch(sync_or_barrier, 1, 32, 0, nullptr, Args{}); }, "divergent warp collective");
  });
  check("a device check", [] {
    return throws([] { launch(refuse_thread, 2, 64, 0, nullptr, Args{33, nullptr, nullptr}); },
                  "block 0, thread 33: the offsets decrease");
  });
  check("a launch after faults works", [] { return reverse_is_right<true>(Order::kShuffled, 1024); });
#ifdef __SANITIZE_ADDRESS__
  check("a write past the shared memory", [] {
    auto run = [](int from) { launch(write_past_shared, 1, 64, 100, nullptr, Args{from, nullptr, nullptr}); };
    return dies([&] { run(37); }) && !dies([&] { run(36); });
  });
#endif
  check("too much shared memory", [] {
    return throws([] { launch(poison, 1, 32, 227 * 1024 + 1, nullptr, Args{}); }, "bytes of shared memory");
  });
  check("shared memory begins as NaN in every block", [] {
    std::vector<float> out(64);
    launch(poison, 2, 64, 256, nullptr, Args{0, out.data(), nullptr});
    for (float x : out)
      if (!std::isnan(x)) return false;
    return true;
  });
  check("asynchronous copies: late, early, zeros where not valid", [] {
    alignas(16) float in[64 * 8];
    for (int i = 0; i < 64 * 8; ++i) in[i] = static_cast<float>(i + 1);
    std::vector<float> out(64 * 8);
    for (Copies mode : {Copies::kLate, Copies::kEarly, Copies::kMixed}) {
      set_copies(mode);
      for (bool valid : {true, false}) {
        launch(copy<true>, 1, 64, sizeof(in), nullptr, Args{valid, out.data(), in});
        for (int i = 0; i < 64 * 8; ++i)
          if (out[i] != (valid || i % 8 < 4 ? in[i] : 0)) return false;
      }
    }
    set_copies(Copies::kLate);
    launch(copy<false>, 1, 64, sizeof(in), nullptr, Args{1, out.data(), in});  // a missing wait reads poison
    for (int i = 0; i < 64 * 8; ++i)
      if (i % 8 < 4 ? out[i] != in[i] : !std::isnan(out[i])) return false;
    return throws([&] { launch(copy_and_leave, 1, 1, 16, nullptr, Args{0, nullptr, in}); }, "still pending at exit") &&
           throws([&] { launch(copy_unaligned, 1, 1, 16, nullptr, Args{0, nullptr, in}); }, "not aligned");
  });
}

}  // namespace recgrela::simt

int main() {
  using namespace recgrela::simt;
  check_scheduling();
  check_collectives();
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
