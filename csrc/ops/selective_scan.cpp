// selective_scan on the CPU.
#include "selective_scan.h"

#include "cpu.h"
#include "cpu/selective_scan.h"

namespace recgrela::ops {
namespace {

template <typename T>
cpu::SelectiveScanParams<T> make_params(const SelectiveScan::Operands& a, const Sequences& sequences) {
  cpu::SelectiveScanParams<T> p;
  p.groups = cpu::Groups::of(sequences.count(), a.A.numel());
  p.num_rows = a.num_rows(), p.channels = a.channels(), p.num_states = a.num_states();
  p.set_item_channels();
  p.softplus = a.delta_softplus;
  p.cu_seqlens = sequences.offsets.data();
  p.u = rows<T>(a.u), p.delta = rows<T>(a.delta), p.B = rows<T>(a.B), p.C = rows<T>(a.C), p.z = rows<T>(a.z);
  p.A = data<T>(a.A), p.D = data<T>(a.D), p.delta_bias = data<T>(a.delta_bias);
  p.initial_state = data<T>(a.initial_state);
  return p;
}

// The gradient of B or C, to which all channels contribute. Each item of a group stores a partial sum over its
// channels; a single item stores the gradient itself. add_up() adds the partial sums to the gradient in a fixed order.
template <typename T>
class ChannelSums {
 public:
  ChannelSums(int64_t items_per_group, const Tensor& out)
      : total_(static_cast<T*>(out.mutable_data_ptr())), numel_(out.numel()) {
    if (items_per_group > 1) sums_.resize(items_per_group * numel_);
  }
  T* data() { return sums_.empty() ? total_ : sums_.data(); }
  void add_up() const {
    if (sums_.empty()) return;
    std::copy_n(sums_.begin(), numel_, total_);
    for (size_t row = numel_; row < sums_.size(); row += numel_)
      for (size_t i = 0; i < numel_; ++i) total_[i] += sums_[row + i];
  }

 private:
  T* const total_;
  const size_t numel_;
  std::vector<T> sums_;
};

struct Cpu {
  static constexpr int64_t kCheckpointRows = cpu::kCheckpointRows;

  static void forward(const SelectiveScan::Operands& a, const SelectiveScan::Outputs& out) {
    const Sequences sequences = read_sequences(a.cu_seqlens, a.num_rows());
    dispatch_float(a.u.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a, sequences);
      p.y = mutable_rows<T>(out.y);
      p.final_state = mutable_data<T>(out.final_state), p.checkpoints = mutable_data<T>(out.checkpoints);
      run_forward(cpu::selective_scan_kernels<T>(), p, p.num_items(), a.u.numel() * a.num_states());
    });
  }

  static void backward(const SelectiveScan::Operands& a, const SelectiveScan::Gradients& grads) {
    const Sequences sequences = read_sequences(a.cu_seqlens, a.num_rows());
    dispatch_float(a.u.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      auto p = make_params<T>(a, sequences);
      const int64_t groups = p.groups.count;
      PartialSums<T> d_A(groups, grads.d_A), d_D(groups, grads.d_D), d_delta_bias(groups, grads.d_delta_bias);
      ChannelSums<T> d_B(p.items_per_group(), grads.d_B), d_C(p.items_per_group(), grads.d_C);
      p.d_y = rows<T>(grads.d_y);
      p.saved_checkpoints = data<T>(grads.checkpoints);
      p.d_final_state = data<T>(grads.d_final_state);
      p.d_u = mutable_rows<T>(grads.d_u), p.d_delta = mutable_rows<T>(grads.d_delta);
      p.d_z = mutable_rows<T>(grads.d_z);
      p.d_A = d_A.data(), p.d_D = d_D.data(), p.d_delta_bias = d_delta_bias.data();
      p.d_B = d_B.data(), p.d_C = d_C.data();
      p.d_initial_state = mutable_data<T>(grads.d_initial_state);
      run_backward(cpu::selective_scan_kernels<T>(), p, p.num_items(), a.u.numel() * a.num_states());
      d_A.add_up(), d_D.add_up(), d_delta_bias.add_up(), d_B.add_up(), d_C.add_up();
    });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CPU_OP(SelectiveScan)
