// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/layer_norm.h"

namespace fiqa_fast {

inline LayerNormInput check_layer_norm_dot(const Tensor& x,                      // [B, N, D]
                                           const std::optional<Tensor>& weight,  // [D]
                                           const std::optional<Tensor>& bias,    // [D]
                                           double eps,
                                           const Tensor& w) {  // [N, D]
  constexpr const char* op = "layer_norm_dot";
  const LayerNormInput in = check_layer_norm(op, x, weight, bias, eps);
  check(w.dim() == 2 && w.size(0) == in.tokens && w.size(1) == in.channels, op,
        ": w should have shape [", in.tokens, ", ", in.channels,
        "], the tokens and channels of x, got ", shape_text(w));
  check_same_device(op, "w", w, "x", x);
  check(w.scalar_type() == ScalarType::Float, op, ": w should be float32, got ",
        dtype_text(w.scalar_type()));
  return in;
}

// The implementations, for operators that give this result beside their own.
Tensor layer_norm_dot_cpu(const Tensor& x, const std::optional<Tensor>& weight,
                          const std::optional<Tensor>& bias, double eps, const Tensor& w);
Tensor layer_norm_dot_cuda(const Tensor& x, const std::optional<Tensor>& weight,
                           const std::optional<Tensor>& bias, double eps, const Tensor& w);

}  // namespace fiqa_fast
