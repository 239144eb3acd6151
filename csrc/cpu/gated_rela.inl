// gated_rela: one head of one sequence at a time.

#include "gated_rela_head.inl"
#include "gated_rela_forward.inl"
#include "gated_rela_backward.inl"

template <typename T, bool kBackward>
static void gated_rela_worker(const GatedRelaParams<T>& p, T* scratch) {
  for_each_head(p, scratch, kBackward, [&](auto& head, int64_t group, int64_t number) {
    const int64_t channel = number * p.head_dim, kernel_size = p.kernel_size;
    if (kernel_size) head.conv.load(p.conv_weight + channel * kernel_size, p.conv_bias + channel);
    for (int64_t seq = p.groups.begin(group); seq < p.groups.end(group); ++seq) {
      head.begin(seq, number);
      if constexpr (kBackward) {
        head.backward();
      } else {
        head.forward();
      }
    }
    if (kBackward && kernel_size) {
      const int64_t offset = group * p.num_heads * p.head_dim + channel;
      head.conv.store_gradients(p.d_conv_weight + offset * kernel_size, p.d_conv_bias + offset);
    }
  });
}

template <typename T>
static constexpr GatedRelaKernels<T> kKernels{RelaHead<T, 2>::scratch, gated_rela_worker<T, false>,
                                              gated_rela_worker<T, true>};
