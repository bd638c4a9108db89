// SPDX-License-Identifier: Apache-2.0
#include "ops/mean_layer_norm.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "kernels/cuda/mean_layer_norm.h"
#include "ops/outputs.h"

namespace fiqa_fast {

std::tuple<Tensor, Tensor> mean_layer_norm_cuda(const Tensor& x,                      // [B, N, D]
                                                const std::optional<Tensor>& weight,  // [D]
                                                const std::optional<Tensor>& bias,    // [D]
                                                double eps,
                                                const std::optional<Tensor>& residual,  // [B, N, D]
                                                const std::optional<Tensor>& u) {       // [B, D]
  cuda::MeanLayerNormArgs args = {check_mean_layer_norm(x, weight, bias, eps, residual, u)};
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor mean = empty_float32({args.images, args.channels}, x);
  const Tensor map = u ? empty_float32({args.images, args.tokens}, x) : empty_float32({0}, x);
  if (args.images == 0) return {mean, map};

  const int64_t padded = cuda::MeanLayerNormArgs::padded(args.channels);
  const Tensor partial = empty_float32({args.images, args.chunks(), padded}, x);
  args.partial = float32_data(partial);
  args.mean = float32_data(mean);
  std::optional<Tensor> folded, image_sums;
  if (u) {
    folded = empty_float32({args.images, padded}, x);
    image_sums = empty_float32({2, args.images}, x);
    args.folded = float32_data(*folded);
    args.folded_sum = float32_data(*image_sums);
    args.constant = args.folded_sum + args.images;
    args.map = float32_data(map);
  }
  check_launch("mean_layer_norm", cuda::launch_mean_layer_norm(args, current_stream(x)));
  return {mean, map};
}

}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CUDA, m) {
  m.impl("mean_layer_norm", TORCH_BOX(&fiqa_fast::mean_layer_norm_cuda));
}
