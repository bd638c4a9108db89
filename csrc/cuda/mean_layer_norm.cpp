// SPDX-License-Identifier: Apache-2.0
#include "ops/mean_layer_norm.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "kernels/cuda/mean_layer_norm.h"
#include "ops/outputs.h"

namespace fiqa_fast {

Tensor mean_layer_norm_cuda(const Tensor& x,                      // [B, N, D]
                            const std::optional<Tensor>& weight,  // [D]
                            const std::optional<Tensor>& bias,    // [D]
                            double eps) {
  const LayerNormInput in = check_mean_layer_norm(x, weight, bias, eps);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor out = empty_float32({in.images, in.channels}, x);
  if (in.images == 0) return out;

  cuda::MeanLayerNormArgs args = {in, nullptr, float32_data(out)};
  const Tensor partial = empty_float32({cuda::mean_layer_norm_scratch(args)}, x);
  args.partial = float32_data(partial);
  check_launch("mean_layer_norm", cuda::launch_mean_layer_norm(args, current_stream(x)));
  return out;
}

}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CUDA, m) {
  m.impl("mean_layer_norm", TORCH_BOX(&fiqa_fast::mean_layer_norm_cuda));
}
