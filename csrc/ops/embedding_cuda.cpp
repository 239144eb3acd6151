// embedding on CUDA.
#include "cuda.h"
#include "embedding.h"
#include "kernels/embedding/params.h"

namespace recgrela::ops {
namespace {

struct Cuda {
  using Params = cuda::EmbeddingParams;

  static Params make_params(const Embedding::Operands& a) {
    RECGRELA_CHECK(a.table.scalar_type() == ScalarType::Float, "the CUDA kernels take float32, not ",
                   torch::headeronly::toString(a.table.scalar_type()));
    RECGRELA_CHECK(a.width() % Params::kMinWidth == 0 && a.width() <= Params::kMaxWidth,
                   "the CUDA kernels take widths of 16 to 256 that are multiples of 16, not ", a.width());
    RECGRELA_CHECK(a.num_rows() <= Params::kMaxRows && a.n_items() <= INT32_MAX,
                   "the CUDA kernels take up to 2^30 rows and 2^31 - 1 items; split the batch");
    Params p;
    p.num_rows = a.num_rows(), p.n_items = a.n_items(), p.width = static_cast<int>(a.width());
    p.eps = static_cast<float>(a.eps), p.padding_idx = a.padding_idx;
    p.dropout = cuda_dropout(a.dropout, a.seed, 0, 1, a.table, a.num_rows() * a.width());
    p.items = data<int64_t>(a.items), p.table = data<float>(a.table);
    p.weight = data<float>(a.weight), p.bias = data<float>(a.bias);
    return p;
  }

  // The kernels load vectors of 16 bytes.
  static Embedding::Operands aligned_operands(Embedding::Operands a) {
    a.table = *aligned(a.table), a.weight = aligned(a.weight), a.bias = aligned(a.bias);
    return a;
  }

  static void forward(const Embedding::Operands& operands, const Tensor& y) {
    const Embedding::Operands a = aligned_operands(operands);
    Params p = make_params(a);
    p.y = mutable_data<float>(y);
    on_device(a.table, [&](cudaStream_t stream) { return cuda::embedding_forward(p, stream); });
  }

  static void backward(const Embedding::Operands& operands, const Embedding::Gradients& grads) {
    const Embedding::Operands a = aligned_operands(operands);
    const Tensor d_y = aligned_rows(grads.d_y);
    Params p = make_params(a);
    p.d_y = cuda_rows(d_y), p.d_table = mutable_data<float>(grads.d_table);
    p.d_weight = mutable_data<float>(grads.d_weight), p.d_bias = mutable_data<float>(grads.d_bias);
    run_kernel(a.table, p, cuda::embedding_backward_workspace, cuda::embedding_backward);
  }
};

}  // namespace
}  // namespace recgrela::ops

RECGRELA_CUDA_OP(Embedding)
