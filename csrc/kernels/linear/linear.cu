// Host side of linear: one or two linear layers that read the same rows.
//
// The layers are narrow, so that every pass is bound by the bytes of its rows: the forward reads x once and writes the
// outputs, and the backward reads d_y and x once for all gradients. Products use tensor cores; weights are float32 and
// rounded to the type of the rows as they are staged in shared memory.
#include "kernels/common/reduce.cuh"
#include "kernels/common/workspace.cuh"
#include "kernels/linear/plan.cuh"

namespace recgrela::cuda {
namespace {

// Stores column n I + i of the partial sums to the weights' gradients, and column N I + n to the biases'.
struct StoreLayerGradients {
  float *d_weight[2], *d_bias[2];
  int64_t first_weights, weights, first_outputs;  // the first layer's weights and both layers', the first's outputs

  __device__ void operator()(int64_t column, float sum) const {
    const bool is_bias = column >= weights;
    if (is_bias) column -= weights;
    const int64_t first = is_bias ? first_outputs : first_weights;
    const bool second = column >= first;
    float* const to = is_bias ? (second ? d_bias[1] : d_bias[0]) : (second ? d_weight[1] : d_weight[0]);
    if (to) to[second ? column - first : column] = sum;
  }
};

bool is_width(int64_t width) { return width > 0 && width % 16 == 0 && width <= LinearParams::kMaxWidth; }

bool supported(const LinearParams& p) {
  const int64_t first = p.layers[0].outputs, second = p.layers[1].outputs;
  return is_width(p.width) && is_width(first) && (second == 0 || is_width(second)) && is_width(first + second) &&
         p.num_rows >= 0 && p.num_rows <= LinearParams::kMaxRows;
}

LinearPlan make_plan(const LinearParams& params, bool backward) {
  auto rows = [](const RowMatrix& x) { return PlanRows{x.data, static_cast<int>(x.stride)}; };
  LinearPlan p;
  p.num_rows = static_cast<int>(params.num_rows), p.width = static_cast<int>(params.width);
  p.x = rows(params.x), p.d_x = rows(params.d_x), p.d_passed = rows(params.d_passed);
  for (int i = 0; i < 2; ++i) {
    const LinearLayer& layer = params.layers[i];
    p.outputs += static_cast<int>(layer.outputs);
    p.weights[i] = layer.weight, p.biases[i] = layer.bias;
    p.rows[i] = rows(backward ? layer.d_y : layer.y);
  }
  p.first_outputs = static_cast<int>(params.layers[0].outputs);
  p.max_shared_bytes = params.max_shared_bytes ? params.max_shared_bytes : max_shared_bytes();
  p.num_gradients = (p.width + p.has_bias()) * p.outputs;
  return p;
}

// Divides the work of the backward and places its partial sums in the workspace; returns its size.
size_t lay_out(LinearPlan& p, const LinearParams& params) {
  dispatch_dtype(params.dtype, [&](auto element) {
    LinearKernels<decltype(element)>::plan_backward(p);
    return cudaSuccess;
  });
  Workspace workspace(params.workspace);
  p.partials = workspace.take_floats(int64_t{p.row_blocks} * p.num_gradients);
  return workspace.size();
}

}  // namespace

size_t linear_backward_workspace(const LinearParams& params) {
  if (!supported(params)) return 0;
  LinearPlan p = make_plan(params, true);
  return lay_out(p, params);
}

cudaError_t linear_forward(const LinearParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  LinearPlan p = make_plan(params, false);
  return dispatch_dtype(params.dtype,
                        [&](auto element) { return LinearKernels<decltype(element)>::forward(p, stream); });
}

cudaError_t linear_backward(const LinearParams& params, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  LinearPlan p = make_plan(params, true);
  lay_out(p, params);
  RECGRELA_RETURN_IF_ERROR(dispatch_dtype(
      params.dtype, [&](auto element) { return LinearKernels<decltype(element)>::backward(p, stream); }));
  const LinearLayer &first = params.layers[0], &second = params.layers[1];
  const StoreLayerGradients store{{first.d_weight, second.d_weight},
                                  {first.d_bias, second.d_bias},
                                  params.width * first.outputs,
                                  params.width * p.outputs,
                                  first.outputs};
  return add_partials(p.partials, p.row_blocks, p.num_gradients, store, stream);
}

}  // namespace recgrela::cuda
