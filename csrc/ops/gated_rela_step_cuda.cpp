// gated_rela_step on CUDA.
#include "cuda.h"
#include "gated_rela_step.h"
#include "kernels/gated_rela_step/params.h"

namespace recgrela::ops {
namespace {

struct Cuda {
  static void forward(const GatedRelaStep::Operands& a, const Tensor& y) {
    const int64_t d = a.head_dim();
    RECGRELA_CHECK(d == 8 || d == 16 || d == 32 || d == 64 || d == 128,
                   "the CUDA kernels take heads of 8, 16, 32, 64 or 128 channels, not ", d);
    cuda::GatedRelaStepParams p;
    p.dtype = cuda_dtype(a.v);
    p.batch = a.batch(), p.num_heads = static_cast<int>(a.num_heads), p.head_dim = static_cast<int>(d);
    p.kernel_size = static_cast<int>(a.kernel_size()), p.eps = static_cast<float>(a.eps);
    p.q = cuda_rows(a.q), p.k = cuda_rows(a.k), p.v = cuda_rows(a.v), p.g = cuda_rows(a.g), p.y = cuda_rows(y);
    if (!a.k) p.k = {static_cast<char*>(p.q.data) + a.width() * cuda::size_of(p.dtype), p.q.stride};
    p.turns = data<int64_t>(a.turns);
    p.conv_weight = data<float>(a.conv_weight), p.conv_bias = data<float>(a.conv_bias);
    p.kv_state = static_cast<float*>(a.kv_state.mutable_data_ptr()), p.kv_stride = a.kv_state.stride(0);
    p.history = state_rows(a.history);
    p.position = static_cast<int64_t*>(a.position.mutable_data_ptr()), p.position_stride = a.position.stride(0);
    on_device(a.v, [&](cudaStream_t stream) { return cuda::gated_rela_step(p, stream); });
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(GatedRelaStep)
