// SPDX-License-Identifier: Apache-2.0
#include "ops/layer_norm_dot.h"

#include <torch/csrc/stable/library.h>

#include "cpu/schedule.h"
#include "kernels/cpu/layer_norm_dot.h"
#include "ops/outputs.h"

namespace fiqa_fast {

Tensor layer_norm_dot_cpu(const Tensor& x,                      // [B, N, D]
                          const std::optional<Tensor>& weight,  // [D]
                          const std::optional<Tensor>& bias,    // [D]
                          double eps,
                          const Tensor& w) {  // [N, D]
  const LayerNormInput in = check_layer_norm_dot(x, weight, bias, eps, w);
  const Tensor out = empty_float32({in.images}, x);
  if (in.images == 0) return out;

  LayerNormDotArgs args = {in, static_cast<const float*>(w.const_data_ptr()), w.stride(0),
                           w.stride(1)};
  const Tensor partial = empty_float32({in.images, args.chunks()}, x);
  args.partial = float32_data(partial);
  args.out = float32_data(out);

  const LayerNormDotKernels& kernels = layer_norm_dot_kernels();
  std::optional<Tensor> folded, constant;
  if (args.needs_folding()) {
    folded = empty_float32({in.tokens, LayerNormDotArgs::padded(in.channels)}, x);
    constant = empty_float32({in.tokens}, x);
    args.folded = float32_data(*folded);
    args.constant = float32_data(*constant);
    torch::stable::parallel_for(
        0, in.tokens, kLayerNormDotTokensPerChunk,
        [&](int64_t begin, int64_t end) { kernels.fold(args, begin, end); });
  }
  run_phases<LayerNormDotArgs>(args, in.images,
                               {{kernels.partial_sums, args.chunks()}, {kernels.combine, 1}});
  return out;
}

}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CPU, m) {
  m.impl("layer_norm_dot", TORCH_BOX(&fiqa_fast::layer_norm_dot_cpu));
}
