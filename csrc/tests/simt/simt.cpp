// Scheduler of the fibers, which are the threads of a block.
#include "tests/simt/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/simt/collectives.h"
#include "tests/simt/context.h"

#ifdef RECGRELA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

recgrela::simt::Index threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace recgrela::simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024, kGuardBytes = 16 * 1024;
constexpr size_t kMaxSharedBytes = 227 * 1024;

struct Copy {
  void* to;
  const void* from;
  bool valid, done;
  int64_t group;
};

struct Stop {};  // thrown to unwind the thread that failed

enum class State { kRunning, kAtCollective, kAtBarrier, kExited };

struct Fiber {
  Context context;
  Stack stack;
  void* fake_stack = nullptr;  // of the sanitizer
  int thread = 0;
  State state = State::kRunning;
  Collective kind{};
  std::vector<Copy> copies;
  int64_t groups = 0;   // committed
  uint64_t stores = 0;  // hash of the addresses of all stores of matrices
};

// Lanes that wait for one another.
struct Group {
  Collective kind;
  uint32_t mask, arrived;
};

// Ready lanes and warps run in the order of their ranks, which depend on the Order. Sets of them are bit masks.
struct Warp {
  uint32_t existing = 0, exited = 0, at_barrier = 0;  // by lane
  uint32_t ready = 0;                                 // by rank
  uint8_t lane_of[kLanes], rank_of[kLanes];
  int num_groups = 0;
  Group groups[kLanes];
  void* operands[kLanes];
};

struct Random {
  uint64_t state = 1;
  uint32_t operator()(uint32_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>((state >> 32) * below >> 32);
  }
};

Order order = Order::kAscending;
Copies copies_mode = Copies::kLate;
uint64_t order_seed = 0;
int num_multiprocessors = 4;
Random random_source;

int64_t num_launches = 0;

// State of the current launch.
void (*entry_call)(const void*) = nullptr;
const void* entry_arguments = nullptr;
std::vector<std::unique_ptr<Fiber>> fibers;  // reused by later launches, with their stacks
Fiber host;                                  // the caller of launch
Fiber* current = &host;
int num_threads = 0, num_warps = 0, num_exited = 0, num_at_barrier = 0;
Warp warps[kLanes];
uint32_t ready_warps = 0;  // by rank
uint8_t warp_of[kLanes], rank_of_warp[kLanes];
unsigned char* shared_memory = nullptr;
std::string error;
bool failed = false;

RECGRELA_NO_SANITIZE void switch_to(Fiber& to, bool for_good = false) {
  Fiber& from = *current;
  current = &to;
  threadIdx.x = to.thread;
#ifdef RECGRELA_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack.bottom, to.stack.bytes);
#else
  (void)for_good;
#endif
  Context::change(from.context, to.context);
#ifdef RECGRELA_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

std::string list_threads(State state) {
  std::string text;
  for (int t = 0; t < num_threads; ++t) {
    if (fibers[t]->state != state) continue;
    int last = t;
    auto same = [&](const Fiber& f) {
      return f.state == state && (state != State::kAtCollective || f.kind == fibers[t]->kind);
    };
    while (last + 1 < num_threads && same(*fibers[last + 1])) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(t) + (last > t ? "-" + std::to_string(last) : "");
    if (state == State::kAtCollective) text += std::string(" at ") + name(fibers[t]->kind);
    t = last;
  }
  return text.empty() ? "none" : text;
}

std::string where_threads_are() {
  return "; at __syncthreads: " + list_threads(State::kAtBarrier) +
         "; at collectives: " + list_threads(State::kAtCollective) + "; exited: " + list_threads(State::kExited);
}

// Draws new ranks. Only called while no thread waits at a collective.
RECGRELA_NO_SANITIZE void set_ranks(uint8_t* of, uint8_t* rank, int n) {
  for (int i = 0; i < n; ++i) of[i] = static_cast<uint8_t>(order == Order::kDescending ? n - 1 - i : i);
  if (order == Order::kShuffled)
    for (int i = n - 1; i > 0; --i) std::swap(of[i], of[random_source(i + 1)]);
  for (int i = 0; i < n; ++i) rank[of[i]] = static_cast<uint8_t>(i);
}

RECGRELA_NO_SANITIZE void make_all_ready() {
  set_ranks(warp_of, rank_of_warp, num_warps);
  ready_warps = num_warps == kLanes ? ~0u : (1u << num_warps) - 1;
  for (int i = 0; i < num_warps; ++i) {
    Warp& w = warps[i];
    const int lanes = __builtin_popcount(w.existing);
    set_ranks(w.lane_of, w.rank_of, lanes);
    w.ready = w.existing, w.at_barrier = 0;
  }
}

RECGRELA_NO_SANITIZE Fiber& take_next(int warp) {
  Warp& w = warps[warp];
  const int lane = w.lane_of[__builtin_ctz(w.ready)];
  w.ready &= w.ready - 1;
  if (w.ready == 0) ready_warps &= ~(1u << rank_of_warp[warp]);
  return *fibers[warp * kLanes + lane];
}

// Switches to another fiber, of the same warp if possible, so that warps drift apart as far as possible.
RECGRELA_NO_SANITIZE void yield(bool for_good) {
  int warp = current->thread / kLanes;
  if (warps[warp].ready == 0) {
    if (ready_warps == 0) {
      if (num_exited == num_threads) return switch_to(host, for_good);
      fail("deadlock");
    }
    warp = warp_of[__builtin_ctz(ready_warps)];
  } else if (order == Order::kShuffled && random_source(64) == 0) {
    for (uint32_t skip = random_source(num_warps), rest = ready_warps; rest; rest &= rest - 1, --skip) {
      warp = warp_of[__builtin_ctz(rest)];
      if (skip == 0) break;
    }
  }
  Fiber& next = take_next(warp);
  if (&next != current) switch_to(next, for_good);
}

void check_not_awaited(const char* what) {
  const Warp& w = warps[current->thread / kLanes];
  for (int i = 0; i < w.num_groups; ++i)
    if (w.groups[i].mask >> current->thread % kLanes & 1)
      fail(std::string("divergent warp collective: this thread is at ") + what +
           ", others of its warp wait for it at " + name(w.groups[i].kind));
}

// Fails if some lanes of a warp have stored matrices without the others.
RECGRELA_NO_SANITIZE void check_stores(int warp) {
  const uint64_t stores = fibers[warp * kLanes]->stores;
  for (int t = warp * kLanes; t < std::min(num_threads, (warp + 1) * kLanes); ++t)
    if (fibers[t]->stores != stores) fail("divergent warp collective: not all lanes have stored the same matrices");
}

void leave() {
  Fiber& f = *current;
  if (!f.copies.empty()) fail("asynchronous copies still pending at exit");
  check_not_awaited("its end");
  if (num_at_barrier) fail("barrier not reached by all threads: this one exits");
  f.state = State::kExited;
  Warp& w = warps[f.thread / kLanes];
  w.exited |= 1u << f.thread % kLanes;
  if (w.exited == w.existing) check_stores(f.thread / kLanes);
  ++num_exited;
}

RECGRELA_NO_SANITIZE void fiber_main() {
#ifdef RECGRELA_ASAN
  // The first fiber of a launch learns the stack of the host.
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!host.stack.bottom) host.stack = {const_cast<char*>(static_cast<const char*>(bottom)), bytes};
#endif
  try {
    entry_call(entry_arguments);
    leave();
    yield(true);
  } catch (const Stop&) {
  }
  switch_to(host, true);
  __builtin_trap();
}

void add_fiber() {
  const size_t i = fibers.size(), bytes = kGuardBytes + kStackBytes;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
  auto fiber = std::make_unique<Fiber>();
  fiber->thread = static_cast<int>(i);
  // Stacks begin at different offsets in a page, which avoids conflicts in the cache.
  fiber->stack = {static_cast<char*>(memory) + kGuardBytes, kStackBytes - i % 16 * 1088};
  fibers.push_back(std::move(fiber));
}

void begin_block() {
  num_exited = num_at_barrier = 0;
  for (int i = 0; i < num_warps; ++i) {
    Warp& w = warps[i];
    const int lanes = std::min(kLanes, num_threads - i * kLanes);
    w.existing = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    w.exited = 0, w.num_groups = 0;
  }
  for (int t = 0; t < num_threads; ++t) {
    Fiber& f = *fibers[t];
    f.context.begin(f.stack, &fiber_main);
    f.state = State::kRunning;
    f.copies.clear();
    f.groups = 0, f.stores = 0;
  }
  make_all_ready();
}

// Begins a group with `lane`; fails if a lane that it waits for cannot arrive.
void begin_group(Warp& w, int lane, Collective kind, uint32_t mask) {
  auto refuse = [kind](const std::string& why) {
    fail(std::string("divergent warp collective: this thread is at ") + name(kind) + why);
  };
  if (!(mask >> lane & 1)) refuse(" with a mask that does not name it");
  if (w.existing != ~0u && kind >= Collective::kMmaBf16) refuse(" in a warp of fewer than 32 threads");
  if (mask & w.exited) refuse(", others of its warp have exited");
  if (mask & w.at_barrier) refuse(", others of its warp at __syncthreads");
  for (int i = 0; i < w.num_groups; ++i)
    if ((w.groups[i].mask >> lane & 1) && (w.groups[i].arrived & mask))
      refuse(std::string(", others of its warp at ") + name(w.groups[i].kind) +
             (w.groups[i].kind == kind ? " with another mask" : ""));
  w.groups[w.num_groups++] = {kind, mask, 0};
}

void take_operands(Collective kind, void* operands) {
  if (kind >= Collective::kLoadMatrices) {
    auto& o = *static_cast<MatrixOperands*>(operands);
    if (reinterpret_cast<uintptr_t>(o.row) % 16) fail("load_matrices: a row is not aligned to 16 bytes");
    std::memcpy(o.copy, o.row, 16);
  }
  if (kind >= Collective::kShuffle && kind <= Collective::kShuffleDown) {
    const unsigned width = static_cast<ShuffleOperands*>(operands)->width;
    if (width < 1 || width > kLanes || (width & (width - 1))) fail("a shuffle's width is not a power of 2 up to 32");
  }
}

void complete(Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
  copy.done = true;
}

}  // namespace

RECGRELA_NO_SANITIZE void collective(Collective kind, uint32_t mask, void* operands) {
  Fiber& f = *current;
  Warp& w = warps[f.thread / kLanes];
  const int lane = f.thread % kLanes;
  mask &= w.existing;
  if (kind != Collective::kSyncWarp) take_operands(kind, operands);
  int i = 0;
  while (i < w.num_groups && !(w.groups[i].kind == kind && w.groups[i].mask == mask)) ++i;
  if (i == w.num_groups) begin_group(w, lane, kind, mask);
  Group& group = w.groups[i];
  group.arrived |= 1u << lane;
  w.operands[lane] = operands;
  f.state = State::kAtCollective, f.kind = kind;
  if (group.arrived == mask) {
    group = w.groups[--w.num_groups];
    if (kind == Collective::kSyncWarp && mask == w.existing) check_stores(f.thread / kLanes);
    carry_out(kind, mask, w.operands);
    for (uint32_t rest = mask; rest; rest &= rest - 1) w.ready |= 1u << w.rank_of[__builtin_ctz(rest)];
    ready_warps |= 1u << rank_of_warp[f.thread / kLanes];
  }
  yield(false);
  f.state = State::kRunning;
}

RECGRELA_NO_SANITIZE void barrier() {
  Fiber& f = *current;
  Warp& w = warps[f.thread / kLanes];
  f.state = State::kAtBarrier;
  if (num_exited) fail("barrier not reached by all threads: some exited before it");
  if (w.num_groups) check_not_awaited("__syncthreads");
  w.at_barrier |= 1u << f.thread % kLanes;
  if (++num_at_barrier == num_threads) {
    num_at_barrier = 0;
    for (int i = 0; i < num_warps; ++i) check_stores(i);
    make_all_ready();
  }
  yield(false);
  f.state = State::kRunning;
}

RECGRELA_NO_SANITIZE void note_store(const void* address) {
  current->stores = current->stores * 0x9e3779b97f4a7c15u + reinterpret_cast<uintptr_t>(address);
}

void fail(const std::string& message) {
  error = "block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(current->thread) + ": " + message +
          where_threads_are();
  failed = true;
  throw Stop();
}

void set_order(Order new_order, uint64_t seed) {
  order = new_order;
  order_seed = seed;
}
void set_copies(Copies copies) { copies_mode = copies; }
void set_multiprocessors(int count) { num_multiprocessors = count; }

void run(int64_t blocks, int threads, size_t shared_bytes, void (*call)(const void*), const void* arguments) {
  if (shared_bytes > kMaxSharedBytes)
    throw Error("a launch asks for " + std::to_string(shared_bytes) + " bytes of shared memory, more than " +
                std::to_string(kMaxSharedBytes));
  if (current != &host) throw Error("a launch within a launch");
  ++num_launches;
  while (fibers.size() < static_cast<size_t>(threads)) add_fiber();
  // The exact size lets the sanitizer detect overruns.
  void* memory = nullptr;
  if (shared_bytes && posix_memalign(&memory, 16, shared_bytes) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, decltype(&std::free)> owner(memory, &std::free);

  shared_memory = static_cast<unsigned char*>(memory);
  num_threads = threads, num_warps = (threads + kLanes - 1) / kLanes;
  entry_call = call, entry_arguments = arguments;
  random_source.state = order_seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
  host.stack = {};
  failed = false;
  blockDim = dim3(threads), gridDim = dim3(static_cast<unsigned>(blocks));
  threadIdx = {}, blockIdx = {};
  for (int64_t b = 0; b < blocks && !failed; ++b) {
    blockIdx.x = static_cast<unsigned>(b);
    if (shared_bytes) std::memset(memory, 0xff, shared_bytes);
    begin_block();
    switch_to(take_next(warp_of[0]));
  }
  shared_memory = nullptr;
  if (!failed) return;
#ifdef RECGRELA_ASAN
  for (const auto& f : fibers) __asan_unpoison_memory_region(f->stack.bottom, f->stack.bytes);
#endif
  throw Error(error);
}

}  // namespace recgrela::simt

namespace recgrela::cuda {

using namespace simt;

void copy_async16(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || (valid && reinterpret_cast<uintptr_t>(global) % 16))
    fail("copy_async16: an address is not aligned to 16 bytes");
  Copy copy{shared, global, valid, false, current->groups};
  if (copies_mode == Copies::kEarly || (copies_mode == Copies::kMixed && random_source(2))) complete(copy);
  current->copies.push_back(copy);
}

void copies_commit() { ++current->groups; }

void wait_for_copies(int pending) {
  auto& copies = current->copies;
  const int64_t done = current->groups - pending;  // earlier groups must be complete
  auto rest = copies.begin();
  for (Copy& copy : copies) {
    if (copy.group >= done) {
      *rest++ = copy;
    } else if (!copy.done) {
      complete(copy);
    }
  }
  copies.erase(rest, copies.end());
}

unsigned char* dynamic_shared() { return shared_memory; }
int multiprocessors() { return num_multiprocessors; }
int max_shared_bytes() { return kMaxSharedBytes; }

}  // namespace recgrela::cuda

// Number of launches so far. Tests of the operators read it through the loaded library.
extern "C" __attribute__((visibility("default"))) int64_t recgrela_simt_launches() {
  return recgrela::simt::num_launches;
}
