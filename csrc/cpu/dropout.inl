// dropout: a linear op, so its gradient is the same op.

#include "activation.inl"

template <typename T>
static void dropout_worker(const DropoutParams<T>& p, T*) {
  for (int64_t item; p.queue->take(item);) {
    const int64_t i = item * p.kItemElements, n = std::min(p.kItemElements, p.numel - i);
    activate_and_drop<T, Activation::kNone>(p.dropout, i, n, p.x + i, p.y + i);
  }
}

template <typename T>
static constexpr DropoutKernels<T> kKernels{no_scratch<DropoutParams<T>>, dropout_worker<T>, dropout_worker<T>};
