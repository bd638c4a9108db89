// SPDX-License-Identifier: Apache-2.0
#include "ops/add_layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/launch.h"
#include "kernels/cuda/add_layer_norm.h"

namespace fiqa_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_cuda(
    const Tensor& x,                                                                    // [B, N, D]
    const Tensor& residual,                                                             // [B, N, D]
    const std::optional<Tensor>& weight,                                                // [D]
    const std::optional<Tensor>& bias,                                                  // [D]
    double eps, ScalarType dtype, int64_t mean_from, const std::optional<Tensor>& w) {  // [M, D]
  AddLayerNorm op = prepare_add_layer_norm(x, residual, weight, bias, eps, dtype, mean_from, w);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  if (op.args.images > 0) {
    check_launch("add_layer_norm", cuda::launch_add_layer_norm(op.args, current_stream(x)));
  }
  using torch::stable::narrow;
  Tensor mean = empty_float32({0}, x), dot = empty_float32({0}, x);
  if (mean_from >= 0) {
    const Tensor tokens = narrow(op.sum, 1, mean_from, op.args.tokens - mean_from);
    mean = std::get<0>(mean_layer_norm_cuda(tokens, weight, bias, eps, std::nullopt, std::nullopt));
  }
  if (w)
    dot =
        layer_norm_dot_cuda(narrow(op.sum, 1, 0, w->size(0)), std::nullopt, std::nullopt, eps, *w);
  return {op.sum, op.normed, mean, dot};
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CUDA, m) {
  m.impl("add_layer_norm", TORCH_BOX(&fiqa_fast::add_layer_norm_cuda));
}
