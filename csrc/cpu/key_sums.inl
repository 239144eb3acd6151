// key_sums: the sums of R phi(k) (x) v and of phi(k) over each sequence. A query needs nothing else to attend to the
// whole sequence. Uses the steps of gated_rela, for one head of one sequence at a time.

#include "gated_rela_head.inl"
#include "gated_rela_backward.inl"

template <typename T, int N>
static void key_sums_forward(RelaHead<T, N>& head) {
  head.sum_keys();
  std::copy_n(head.S, head.d * head.d + head.d, head.kv_state_of(head.p.final_kv_state));  // and z
}

// U and d_z are the gradients of the sums: d_v = R phi(k) U; d_k follows from v U^T and d_z through rotation and phi.
template <typename T, int N>
static void key_sums_backward(RelaHead<T, N>& head) {
  const int64_t d = head.d;
  std::copy_n(head.kv_state_of(head.p.d_final_kv_state), d * d + d, head.U);  // and d_z
  transpose(head.U, head.Ut, d);
  for (int64_t t0 = 0; t0 < head.len; t0 += kChunk) {
    const int64_t n = std::min(kChunk, head.len - t0);
    head.compute_keys(t0, n, false);
    sweep<T, N, false, true, false>(n, d, {}, {}, head.in(head.rk), head.num, head.U);
    const RowMatrix<T> d_v = head.at(head.p.d_v, t0);
    for (int64_t t = 0; t < n; ++t) std::copy_n(head.num + t * d, d, d_v.row(t));
    sweep<T, N, false, true, false>(n, d, {}, {}, head.in_v(t0), head.d_rot, head.Ut);
    head.backward_key(t0, n);
  }
}

template <typename T, bool kBackward>
static void key_sums_worker(const GatedRelaParams<T>& p, T* scratch) {
  for_each_head(p, scratch, kBackward, [&](auto& head, int64_t group, int64_t number) {
    for (int64_t seq = p.groups.begin(group); seq < p.groups.end(group); ++seq) {
      head.begin(seq, number);
      if constexpr (kBackward) {
        key_sums_backward(head);
      } else {
        key_sums_forward(head);
      }
    }
  });
}

template <typename T>
static constexpr GatedRelaKernels<T> kKernels{RelaHead<T, 2>::scratch, key_sums_worker<T, false>,
                                              key_sums_worker<T, true>};
