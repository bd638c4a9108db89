// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "kernels/add_layer_norm.h"
#include "ops/layer_norm.h"
#include "ops/layer_norm_dot.h"
#include "ops/mean_layer_norm.h"
#include "ops/outputs.h"

namespace fiqa_fast {

struct AddLayerNorm {
  AddLayerNormArgs args;
  Tensor sum, normed;
};

// Checks the inputs and makes the outputs.
inline AddLayerNorm prepare_add_layer_norm(const Tensor& x,                      // [B, N, D]
                                           const Tensor& residual,               // [B, N, D]
                                           const std::optional<Tensor>& weight,  // [D]
                                           const std::optional<Tensor>& bias,    // [D]
                                           double eps, ScalarType dtype, int64_t mean_from,
                                           const std::optional<Tensor>& w) {  // [M, D]
  constexpr const char* op = "add_layer_norm";
  const LayerNormInput in = check_layer_norm(op, x, weight, bias, eps);
  check(in.dtype == DType::kFloat32, op, ": x should be float32, got ",
        dtype_text(x.scalar_type()));
  check(residual.dim() == 3 && residual.size(0) == in.images && residual.size(1) == in.tokens &&
            residual.size(2) == in.channels,
        op, ": residual should have the shape of x, ", shape_text(x), ", got ",
        shape_text(residual));
  check_same_device(op, "residual", residual, "x", x);
  const DType residual_dtype = check_dtype(op, "residual", residual);
  check(mean_from >= -1 && mean_from < in.tokens, op, ": mean_from should be -1 or a token of x, ",
        "below ", in.tokens, ", got ", mean_from);
  if (w) {
    check(w->dim() == 2 && w->size(0) > 0 && w->size(0) <= in.tokens && w->size(1) == in.channels,
          op, ": w should have at most the tokens and all channels of x, [1 to ", in.tokens, ", ",
          in.channels, "], got ", shape_text(*w));
    check_same_device(op, "w", *w, "x", x);
    check(w->scalar_type() == ScalarType::Float, op, ": w should be float32, got ",
          dtype_text(w->scalar_type()));
  }
  check(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
        op, ": dtype should be float32, bfloat16 or float16, got ", dtype_text(dtype));
  const Tensor sum = empty_float32({in.images, in.tokens, in.channels}, x);
  const Tensor normed = empty_of(dtype, {in.images, in.tokens, in.channels}, x);
  return {{static_cast<const float*>(in.x), in.image_stride, in.token_stride, in.channel_stride,
           residual.const_data_ptr(), residual_dtype, residual.stride(0), residual.stride(1),
           residual.stride(2), in.weight, in.bias, in.images, in.tokens, in.channels, in.eps,
           float32_data(sum), normed.mutable_data_ptr(), check_dtype(op, "normed", normed)},
          sum,
          normed};
}

}  // namespace fiqa_fast
