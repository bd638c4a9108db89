// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/layer_norm.h"

namespace fiqa_fast {

inline LayerNormInput check_mean_layer_norm(const Tensor& x,                      // [B, N, D]
                                            const std::optional<Tensor>& weight,  // [D]
                                            const std::optional<Tensor>& bias,    // [D]
                                            double eps) {
  return check_layer_norm("mean_layer_norm", x, weight, bias, eps);
}

// The implementations, for operators that give this result beside their own.
Tensor mean_layer_norm_cpu(const Tensor& x, const std::optional<Tensor>& weight,
                           const std::optional<Tensor>& bias, double eps);
Tensor mean_layer_norm_cuda(const Tensor& x, const std::optional<Tensor>& weight,
                            const std::optional<Tensor>& bias, double eps);

}  // namespace fiqa_fast
