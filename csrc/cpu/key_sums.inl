// key_sums: what a row that sees its whole sequence needs of the others, the sums of R phi(k) (x) v and of phi(k),
// by the steps of gated_rela, for one head of one sequence at a time.

template <typename T, int N>
static void key_sums_forward(RelaHead<T, N>& head) {
  head.sum_keys();
  std::copy_n(head.S, head.d * head.d + head.d, head.state_of(head.p.final_sums));  // and z
}

// U and dz are the gradients of the sums: dv = R phi(k) U, dk through the rotation and phi from v U^T and dz.
template <typename T, int N>
static void key_sums_backward(RelaHead<T, N>& head) {
  const int64_t d = head.d;
  std::copy_n(head.state_of(head.p.final_sums_grad), d * d + d, head.U);  // and dz
  transpose(head.U, head.Ut, d);
  for (int64_t t0 = 0; t0 < head.len; t0 += kChunk) {
    const int64_t n = std::min(kChunk, head.len - t0);
    head.find_keys(t0, n, false);
    sweep<T, N, false, true, false>(n, d, {}, {}, head.in(head.rk), head.num, head.U);
    const Rows<T> dv = head.at(head.p.dv, t0);
    for (int64_t t = 0; t < n; ++t) std::copy_n(head.num + t * d, d, dv.row(t));
    sweep<T, N, false, true, false>(n, d, {}, {}, head.in_v(t0), head.drot, head.Ut);
    head.backward_key(t0, n);
  }
}

template <typename T, bool kBackward>
static void key_sums_worker(const GatedRelaParams<T>& p, T* scratch) {
  with_lanes<T>(p.head_dim, [&](auto lanes) {
    constexpr int N = decltype(lanes)::value;
    if constexpr (N > 1) {  // head_dim is even
      RelaHead<T, N> head(p, scratch, kBackward);
      const int64_t heads = p.heads_per_item, parts = p.num_heads / heads;
      for (int64_t item; (item = p.next->fetch_add(1)) < p.num_items();) {
        const int64_t group = item / parts, first = item % parts * heads;
        for (int64_t h = first; h < first + heads; ++h)
          for (int64_t seq = p.groups.begin(group); seq < p.groups.end(group); ++seq) {
            head.begin(seq, h);
            if constexpr (kBackward) {
              key_sums_backward(head);
            } else {
              key_sums_forward(head);
            }
          }
      }
    }
  });
}
