// Stacks and contexts of fibers.
#pragma once

#include <algorithm>
#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define RECGRELA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RECGRELA_ASAN 1
#endif
#endif

// For code that runs while the stack changes, and for hot code that accesses only memory checked before.
#define RECGRELA_NO_SANITIZE __attribute__((no_sanitize("address", "undefined")))

#if defined(__x86_64__) || defined(__aarch64__)
extern "C" void recgrela_simt_switch(void** save, void* load);
#endif

namespace recgrela::simt {

struct Stack {
  char* bottom = nullptr;
  size_t bytes = 0;
};

#if defined(__x86_64__) || defined(__aarch64__)
struct Context {
  void* sp = nullptr;

  void begin(const Stack& stack, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack.bottom + stack.bytes);
#if defined(__x86_64__)
    *--top = nullptr;  // aligns the stack as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
    top -= 20;
    std::fill_n(top, 20, nullptr);
    top[11] = reinterpret_cast<void*>(entry);
#endif
    sp = top;
  }
  static void change(Context& from, const Context& to) { recgrela_simt_switch(&from.sp, to.sp); }
};
#else
struct Context {
  ucontext_t context;

  void begin(const Stack& stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack.bottom, context.uc_stack.ss_size = stack.bytes, context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  static void change(Context& from, const Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

}  // namespace recgrela::simt
