// add_norm: groups of rows at a time.

#include "add_norm_worker.inl"

template <typename T>
static void add_norm_forward(const AddNormParams<T>& p, T* scratch) {
  with_add_norm_worker(p, scratch, [](auto&& worker) { worker.forward(); });
}
template <typename T>
static void add_norm_backward(const AddNormParams<T>& p, T* scratch) {
  with_add_norm_worker(p, scratch, [](auto&& worker) { worker.backward(); });
}

template <typename T>
static constexpr AddNormKernels<T> kKernels{add_norm_scratch<T>, add_norm_forward<T>, add_norm_backward<T>};
