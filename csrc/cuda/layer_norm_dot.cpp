// SPDX-License-Identifier: Apache-2.0
#include "ops/layer_norm_dot.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "kernels/cuda/layer_norm_dot.h"
#include "ops/outputs.h"

namespace fiqa_fast {

Tensor layer_norm_dot_cuda(const Tensor& x,                      // [B, N, D]
                           const std::optional<Tensor>& weight,  // [D]
                           const std::optional<Tensor>& bias,    // [D]
                           double eps,
                           const Tensor& w) {  // [N, D]
  const LayerNormInput in = check_layer_norm_dot(x, weight, bias, eps, w);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor out = empty_float32({in.images}, x);
  if (in.images == 0) return out;

  const Tensor folded = empty_float32({in.tokens, cuda::LayerNormDotArgs::padded(in.channels)}, x);
  const Tensor token_sums = empty_float32({2, in.tokens}, x);
  const Tensor token_values = empty_float32({in.images, in.tokens}, x);
  const cuda::LayerNormDotArgs args = {in,
                                       static_cast<const float*>(w.const_data_ptr()),
                                       w.stride(0),
                                       w.stride(1),
                                       float32_data(folded),
                                       float32_data(token_sums),
                                       float32_data(token_sums) + in.tokens,
                                       float32_data(token_values),
                                       float32_data(out)};
  check_launch("layer_norm_dot", cuda::launch_layer_norm_dot(args, current_stream(x)));
  return out;
}

}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CUDA, m) {
  m.impl("layer_norm_dot", TORCH_BOX(&fiqa_fast::layer_norm_dot_cuda));
}
