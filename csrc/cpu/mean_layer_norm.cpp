// SPDX-License-Identifier: Apache-2.0
#include "ops/mean_layer_norm.h"

#include <torch/csrc/stable/library.h>

#include "cpu/schedule.h"
#include "kernels/cpu/mean_layer_norm.h"
#include "ops/outputs.h"

namespace fiqa_fast {

Tensor mean_layer_norm_cpu(const Tensor& x,                      // [B, N, D]
                           const std::optional<Tensor>& weight,  // [D]
                           const std::optional<Tensor>& bias,    // [D]
                           double eps) {
  const LayerNormInput in = check_mean_layer_norm(x, weight, bias, eps);
  const Tensor out = empty_float32({in.images, in.channels}, x);
  if (in.images == 0) return out;

  MeanLayerNormArgs args = {in, nullptr, float32_data(out)};
  const Tensor partial =
      empty_float32({in.images, args.chunks(), MeanLayerNormArgs::padded(in.channels)}, x);
  args.partial = float32_data(partial);

  const MeanLayerNormKernels& kernels = mean_layer_norm_kernels();
  run_phases<MeanLayerNormArgs>(args, in.images,
                                {{kernels.partial_sums, args.chunks()}, {kernels.combine, 1}});
  return out;
}

}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CPU, m) {
  m.impl("mean_layer_norm", TORCH_BOX(&fiqa_fast::mean_layer_norm_cpu));
}
