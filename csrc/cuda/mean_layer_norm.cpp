// SPDX-License-Identifier: Apache-2.0
#include "ops/mean_layer_norm.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "kernels/cuda/mean_layer_norm.h"
#include "ops/outputs.h"

namespace fiqa_fast {
namespace {

Tensor mean_layer_norm_cuda(const Tensor& x,                      // [B, N, D]
                            const std::optional<Tensor>& weight,  // [D]
                            const std::optional<Tensor>& bias,    // [D]
                            double eps) {
  const MeanLayerNormInputs in = check_mean_layer_norm(x, weight, bias, eps);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor out = empty_float32({in.images, in.channels}, x);
  if (in.images == 0) return out;

  cuda::MeanLayerNormArgs args = {};
  args.x = x.const_data_ptr();
  args.dtype = in.dtype;
  args.images = in.images;
  args.tokens = in.tokens;
  args.channels = in.channels;
  args.image_stride = x.stride(0);
  args.token_stride = x.stride(1);
  args.channel_stride = x.stride(2);
  args.weight = in.weight;
  args.bias = in.bias;
  args.eps = static_cast<float>(eps);
  const Tensor partial = empty_float32({cuda::mean_layer_norm_scratch(args)}, x);
  args.partial = float32_data(partial);
  args.out = float32_data(out);
  check_launch("mean_layer_norm", cuda::launch_mean_layer_norm(args, current_stream(x)));
  return out;
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CUDA, m) {
  m.impl("mean_layer_norm", TORCH_BOX(&fiqa_fast::mean_layer_norm_cuda));
}
