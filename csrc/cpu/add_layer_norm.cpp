// SPDX-License-Identifier: Apache-2.0
#include "ops/add_layer_norm.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/schedule.h"
#include "kernels/cpu/add_layer_norm.h"

namespace fiqa_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_cpu(
    const Tensor& x,                                                                    // [B, N, D]
    const Tensor& residual,                                                             // [B, N, D]
    const std::optional<Tensor>& weight,                                                // [D]
    const std::optional<Tensor>& bias,                                                  // [D]
    double eps, ScalarType dtype, int64_t mean_from, const std::optional<Tensor>& w) {  // [M, D]
  AddLayerNorm op = prepare_add_layer_norm(x, residual, weight, bias, eps, dtype, mean_from, w);
  AddLayerNormCpuArgs args = {op.args};
  // A dot product of all tokens with w as it is costs least on the way: w is then read once, and
  // the tokens not again.
  const bool on_the_way = w && w->size(0) == args.tokens && w->stride(1) == 1 &&
                          args.channels == LayerNormDotArgs::padded(args.channels);
  Tensor mean = empty_float32({0}, x), dot = empty_float32({0}, x);
  LayerNormDotArgs dot_args = {};
  std::optional<Tensor> partial;
  if (on_the_way) {
    dot = empty_float32({args.images}, x);
    partial = empty_float32({args.images, args.chunks()}, x);
    args.w = static_cast<const float*>(w->const_data_ptr());
    args.w_token_stride = w->stride(0);
    args.partial = float32_data(*partial);
    dot_args.tokens = args.tokens;
    dot_args.partial = args.partial;
    dot_args.out = float32_data(dot);
  }
  if (args.images > 0) {
    run_phases<AddLayerNormCpuArgs>(args, args.images,
                                    {{add_layer_norm_kernels().add_and_norm, args.chunks()}});
    if (on_the_way) layer_norm_dot_kernels().combine(dot_args, 0, args.images);
  }
  using torch::stable::narrow;
  if (mean_from >= 0) {
    const Tensor tokens = narrow(op.sum, 1, mean_from, args.tokens - mean_from);
    mean = std::get<0>(mean_layer_norm_cpu(tokens, weight, bias, eps, std::nullopt, std::nullopt));
  }
  if (w && !on_the_way)
    dot = layer_norm_dot_cpu(narrow(op.sum, 1, 0, w->size(0)), std::nullopt, std::nullopt, eps, *w);
  return {op.sum, op.normed, mean, dot};
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CPU, m) {
  m.impl("add_layer_norm", TORCH_BOX(&fiqa_fast::add_layer_norm_cpu));
}
